"use strict";

/** Shows the selected output size beside an accordion's title, so that it can be read while folded, and whether the
 *  read-out is still that of the values before. */
class ResDiT {
    static LONGEST = 3000; // milliseconds; the answer may be what is shown already, which nobody tells

    /** @param {string} tab "txt2img" or "img2img" */
    constructor(tab) {
        this.accordion = gradioApp().getElementById(`${tab}_resdit`);
        this.status = gradioApp().getElementById(`${tab}_resdit_status`);
        this.switch = `#${tab}_resdit-checkbox input`;
        if (!this.accordion || !this.status) return;
        new MutationObserver(() => {
            this.#answered();
            this.#show();
        }).observe(this.status, { childList: true, subtree: true });
        ["change", "input"].forEach((event) => this.accordion.addEventListener(event, () => this.#asked()));
        this.accordion.addEventListener("mousedown", ({ target }) => target.closest("[role=option]") && this.#asked());
        // The switch may be put into the page later than this.
        ["change", "input"].forEach((event) =>
            gradioApp().addEventListener(event, ({ target }) => target.matches?.(this.switch) && this.#show()),
        );
        this.#show();
    }

    #asked() {
        this.status.classList.add("resdit-asked");
        clearTimeout(this.waiting);
        this.waiting = setTimeout(() => this.#answered(), ResDiT.LONGEST);
    }

    #answered() {
        clearTimeout(this.waiting);
        this.status.classList.remove("resdit-asked");
    }

    #show() {
        const title = this.accordion.querySelector(".label-wrap > span");
        const checkbox = gradioApp().querySelector(this.switch);
        const size = (checkbox?.checked && this.status.querySelector("[data-size]")?.dataset.size) || "";
        if (title) title.dataset.resdit = size.replace("x", "\u00d7");
    }
}

onUiLoaded(() => ["txt2img", "img2img"].forEach((tab) => new ResDiT(tab)));
