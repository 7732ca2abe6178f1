"use strict";

/** Shows the selected output size beside each accordion's title, so that it can be read while folded. */
class ResDiT {
    /** @param {string} tab "txt2img" or "img2img" */
    constructor(tab) {
        this.accordion = gradioApp().getElementById(`${tab}_resdit`);
        this.status = gradioApp().getElementById(`${tab}_resdit_status`);
        this.switch = `#${tab}_resdit-checkbox input`;
        if (!this.accordion || !this.status) return;
        new MutationObserver(() => this.#show()).observe(this.status, { childList: true, subtree: true });
        // The switch may be put into the page later than this.
        ["change", "input"].forEach((event) =>
            gradioApp().addEventListener(event, ({ target }) => target.matches?.(this.switch) && this.#show()),
        );
        this.#show();
    }

    #show() {
        const title = this.accordion.querySelector(".label-wrap > span");
        const checkbox = gradioApp().querySelector(this.switch);
        const size = (checkbox?.checked && this.status.querySelector("[data-size]")?.dataset.size) || "";
        if (title) title.dataset.resdit = size.replace("x", "\u00d7");
    }
}

onUiLoaded(() => ["txt2img", "img2img"].forEach((tab) => new ResDiT(tab)));
