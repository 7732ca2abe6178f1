/** The page of a field test: pictures side by side or in one place, and blind votes between two of them. */
class FieldPage {
    #data;
    #view = { scale: 1, x: 0, y: 0 };
    #votes = [];
    #pair = null;

    /** @param {object} data about, options, prompts, errors, pictures, table */
    constructor(data) {
        this.#data = data;
        const about = Object.entries(data.about).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
        this.#by("about").textContent = about.join(", ");
        for (const [number, prompt] of Object.entries(data.prompts)) {
            this.#by("prompt").append(new Option(`${Number(number) + 1}: ${prompt}`, number));
        }
        const sizes = [...new Set([...data.pictures, ...data.errors].map((each) => each.size))];
        for (const size of sizes.filter((each) => each !== "base")) this.#by("size").append(new Option(size));
        for (const id of ["prompt", "size"]) this.#by(id).addEventListener("change", () => this.#compare());
        for (const name of ["compare", "vote", "figures"]) {
            this.#by(`to-${name}`).addEventListener("click", () => this.#open(name));
        }
        this.#by("swap").addEventListener("click", () => this.#together(!this.#isTogether));
        this.#by("fit").addEventListener("click", () => this.#move({ scale: 1, x: 0, y: 0 }));
        this.#by("save").addEventListener("click", () => this.#save());
        for (const button of document.querySelectorAll("[data-choice]")) {
            button.addEventListener("click", () => this.#vote(button.dataset.choice));
        }
        document.addEventListener("keydown", (event) => {
            if (event.key >= "1" && event.key <= "9" && !this.#by("compare").hidden) this.#show(Number(event.key) - 1);
        });
        this.#table();
        this.#open("compare");
        this.#compare();
    }

    #by(id) {
        return document.getElementById(id);
    }

    get #isTogether() {
        return this.#by("views").classList.contains("together");
    }

    #open(name) {
        for (const other of ["compare", "vote", "figures"]) {
            this.#by(other).hidden = other !== name;
            this.#by(`to-${other}`).classList.toggle("current", other === name);
        }
        if (name === "vote" && this.#pair === null) this.#ask();
    }

    /** A picture in a frame that zooms and moves with all others. */
    #figure(picture, title) {
        const figure = document.createElement("figure");
        const caption = document.createElement("figcaption");
        const frame = document.createElement("div");
        const image = document.createElement("img");
        caption.textContent = title;
        frame.className = "frame";
        image.src = picture.url;
        image.alt = title;
        image.draggable = false;
        frame.append(image);
        figure.append(caption, frame);
        frame.addEventListener("wheel", (event) => this.#zoom(event, frame), { passive: false });
        frame.addEventListener("pointerdown", (event) => frame.setPointerCapture(event.pointerId));
        frame.addEventListener("pointermove", (event) => {
            if (!frame.hasPointerCapture(event.pointerId)) return;
            const { scale, x, y } = this.#view;
            const { width, height } = frame.getBoundingClientRect();
            this.#move({ scale, x: x + event.movementX / width, y: y + event.movementY / height });
        });
        return figure;
    }

    #zoom(event, frame) {
        event.preventDefault();
        const box = frame.getBoundingClientRect();
        const at = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
        const { scale, x, y } = this.#view;
        const next = Math.min(40, Math.max(1, scale * Math.exp(-event.deltaY / 400)));
        this.#move({ scale: next, x: at.x - ((at.x - x) * next) / scale, y: at.y - ((at.y - y) * next) / scale });
    }

    /** Show all pictures at a scale and place, both in shares of their frames. */
    #move({ scale, x, y }) {
        const bound = (value) => Math.min(0, Math.max(1 - scale, value));
        this.#view = { scale, x: bound(x), y: bound(y) };
        const transform = `translate(${100 * this.#view.x}%, ${100 * this.#view.y}%) scale(${scale})`;
        for (const image of document.querySelectorAll(".frame img")) {
            image.style.transform = transform;
            image.parentElement.classList.toggle("near", scale * image.clientWidth > 2 * image.naturalWidth);
        }
    }

    #compare() {
        const [number, size] = [Number(this.#by("prompt").value), this.#by("size").value];
        const here = (each) => each.number === number && [size, "base"].includes(each.size);
        const figures = this.#data.pictures.filter(here).map((picture, index) => {
            const pixels = picture.pixels.join("x");
            const figure = this.#figure(picture, `${index + 1}: ${picture.method}, ${pixels}`);
            const note = document.createElement("small");
            const link = document.createElement("a");
            const { seconds, repetition, seam, fine, clip } = picture.row;
            const shown = Object.entries({ seconds, repetition, seam, fine, clip }).filter(([, value]) => value != null);
            note.textContent = `${shown.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ")} `;
            link.href = picture.file;
            link.textContent = "file";
            note.append(link);
            figure.append(note);
            figure.querySelector("figcaption").addEventListener("click", () => this.#show(index));
            return figure;
        });
        this.#by("views").replaceChildren(...figures);
        this.#by("errors").replaceChildren(
            ...this.#data.errors.filter(here).map((each) => {
                const item = document.createElement("li");
                item.textContent = `${each.method}, ${each.size}: ${each.error}`;
                return item;
            })
        );
        this.#show(0, false);
        this.#move(this.#view);
    }

    #together(on) {
        this.#by("views").classList.toggle("together", on);
        this.#by("swap").setAttribute("aria-pressed", String(on));
        this.#move(this.#view);
    }

    /** Choose the picture that is seen in one place. */
    #show(index, together = true) {
        const figures = [...this.#by("views").children];
        if (index >= figures.length) return;
        figures.forEach((figure, place) => figure.classList.toggle("shown", place === index));
        if (together && !this.#isTogether) this.#together(true);
    }

    /** Two methods' pictures of one prompt and size, in an order that nobody knows. */
    #ask() {
        const groups = {};
        for (const picture of this.#data.pictures.filter((each) => each.size !== "base")) {
            (groups[`${picture.number}/${picture.size}`] ??= []).push(picture);
        }
        const asked = new Set(this.#votes.map(({ number, size, left, right }) => [number, size, ...[left, right].sort()].join()));
        const pairs = Object.values(groups).flatMap((group) =>
            group.flatMap((left, index) => group.slice(index + 1).map((right) => [left, right]))
        );
        const open = pairs.filter(
            ([a, b]) => !asked.has([a.number, a.size, ...[a.method, b.method].sort()].join())
        );
        this.#by("count").textContent = `(${this.#votes.length} of ${pairs.length} pairs)`;
        for (const button of document.querySelectorAll("[data-choice]")) button.disabled = open.length === 0;
        this.#pair = open.length ? open[Math.floor(Math.random() * open.length)] : null;
        if (this.#pair === null) {
            this.#by("question").textContent = "There is no pair left.";
            this.#by("pair").replaceChildren();
            return;
        }
        if (Math.random() < 0.5) this.#pair.reverse();
        this.#by("question").textContent = `Which is better? ${this.#data.prompts[this.#pair[0].number]}`;
        this.#by("pair").replaceChildren(...this.#pair.map((picture, place) => this.#figure(picture, ["left", "right"][place])));
        this.#move({ scale: 1, x: 0, y: 0 });
    }

    #vote(choice) {
        const [left, right] = this.#pair;
        const { number, size } = left;
        this.#votes.push({ number, size, left: left.method, right: right.method, choice });
        this.#ask();
    }

    /** How often each method was better, equal or worse than each other one. */
    get #tally() {
        const tally = {};
        for (const { left, right, choice } of this.#votes) {
            const [a, b] = [left, right].sort();
            const cell = (tally[`${a} / ${b}`] ??= { [a]: 0, equal: 0, [b]: 0 });
            cell[{ left, right, equal: "equal" }[choice]] += 1;
        }
        return tally;
    }

    /** Save the votes as a file, and only then say what they were for. */
    #save() {
        const { about, options } = this.#data;
        const text = JSON.stringify({ about, options, tally: this.#tally, votes: this.#votes }, null, 1);
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
        link.download = "votes.json";
        link.click();
        URL.revokeObjectURL(link.href);
        this.#by("tally").hidden = false;
        this.#by("tally").textContent = JSON.stringify(this.#tally, null, 1);
    }

    /** The Markdown table of the figures as one of the page. */
    #table() {
        const [head, , ...lines] = this.#data.table.split("\n");
        const cells = (line) => line.slice(2, -2).split(" | ");
        const table = document.createElement("table");
        for (const [line, kind] of [[head, "th"], ...lines.map((each) => [each, "td"])]) {
            const row = table.insertRow();
            for (const text of cells(line)) {
                const cell = document.createElement(kind);
                cell.textContent = text;
                row.append(cell);
            }
        }
        this.#by("table").append(table);
    }
}

new FieldPage(FIELD_TEST);
