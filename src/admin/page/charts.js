// Two small charts of the last hour, from the samples that the gateway keeps. Where nothing is known there is a gap, and
// nothing is drawn in it.

/** How much time the charts can show, and the distance of the marks on their time axis. All in seconds. */
const WINDOWS = [[300, 60], [900, 180], [3600, 600]];

/** What the charts show: the samples, in seconds since the start of the gateway. */
class Past {
    steps = [];
    /** The present time of the gateway. */
    end = null;
    #interval = 10;
    #number = 0;
    /** When `end` was known, on this page's clock. */
    #at = 0;

    /** The request for what is not known yet, or null if there is nothing new. */
    request(now) {
        this.moveTo(now);
        const isDue = this.end === null || this.end - (this.steps.at(-1)?.to ?? 0) >= this.#interval;
        return isDue ? `history?after=${this.#number}` : null;
    }

    /** Adds the samples of a response. Those of a gateway that was restarted replace the others. */
    add({ interval_seconds: interval, now_seconds: end, samples }, now) {
        if (this.end !== null && end < this.end - interval) {
            this.clear();
            return;
        }
        const steps = samples.map((sample) => {
            const seconds = sample.end - sample.begin;
            const rates = { hits: sample.hits / seconds, others: sample.others / seconds, passed: sample.passed / seconds };
            return { ...sample, ...rates, from: sample.begin, to: sample.end };
        });
        const longest = WINDOWS.at(-1)[0];
        this.steps = [...this.steps, ...steps.filter((step) => step.to > step.from)].filter((step) => step.to > end - longest);
        this.#number = samples.at(-1)?.number ?? this.#number;
        [this.end, this.#interval, this.#at] = [end, interval, now];
    }

    moveTo(now) {
        if (this.end !== null) {
            [this.end, this.#at] = [this.end + now - this.#at, now];
        }
    }

    /** The time without samples up to now, if one is missing. */
    gap() {
        const from = this.steps.at(-1)?.to ?? 0;
        return this.end - from > 2.5 * this.#interval ? { from, to: this.end, isGap: true } : null;
    }

    clear() {
        [this.steps, this.end, this.#number] = [[], null, 0];
    }
}

const MARGIN = { top: 8, right: 10, bottom: 22, left: 58 };

/** A chart: the legend, which also shows the values, and the drawing. */
class Chart {
    /** Charts that show the same moment. */
    peers = [];
    #moment = null;
    #past = null;
    #window = WINDOWS[0][0];

    /** `kind` has the series, and the functions that format and draw their values. */
    constructor(root, kind) {
        this.kind = kind;
        this.plot = root.querySelector(".plot");
        this.momentText = root.querySelector(".moment");
        this.values = kind.series.map(([key, name, className]) => {
            const swatch = shape("svg", { class: `swatch ${className}`, width: 26, height: 12, "aria-hidden": "true" });
            swatch.append(kind.isStacked ? shape("rect", { width: 26, height: 12, class: "band" }) : shape("path", { d: "M0 6H26", class: "line" }));
            const value = element("b");
            root.querySelector(".legend").append(element("li", { "data-series": key }, swatch, element("span", {}, name), value));
            return value;
        });
        this.plot.addEventListener("pointermove", (event) => this.#point(event));
        this.plot.addEventListener("pointerdown", (event) => this.#point(event));
        this.plot.addEventListener("pointerleave", () => this.#read(null));
        this.plot.addEventListener("blur", () => this.#read(null));
        this.plot.addEventListener("focus", () => this.#describe());
        this.plot.addEventListener("keydown", (event) => this.#key(event));
        new ResizeObserver(() => this.draw(this.#past)).observe(this.plot);
    }

    /** Draws this many seconds. */
    draw(past, seconds = this.#window) {
        [this.#past, this.#window] = [past, seconds];
        const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
        if (past === null || width === 0) {
            return;
        }
        const end = past.end ?? 0;
        const [left, right, bottom] = [MARGIN.left, width - MARGIN.right, height - MARGIN.bottom];
        const x = (time) => Math.max(left, right + ((time - end) / seconds) * (right - left));
        const drawing = shape("svg", { width, height, "aria-hidden": "true", focusable: "false" });
        const begin = end - seconds;
        const steps = past.steps.filter((step) => step.to > begin);
        const scale = this.kind.scale(steps);
        const y = (value) => bottom - scale.part(value) * (bottom - MARGIN.top);
        for (const tick of scale.ticks) {
            drawing.append(shape("path", { class: tick === scale.ticks[0] ? "axis" : "grid", d: `M${left} ${y(tick)}H${right}` }));
            drawing.append(shape("text", { class: "tick", x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, this.kind.tick(tick)));
        }
        const distance = WINDOWS.find(([window]) => window === seconds)[1];
        for (let back = 0; back <= seconds; back += distance) {
            const at = x(end - back);
            const label = back === 0 ? "now" : `−${back / 60}${back === seconds ? " min" : ""}`;
            drawing.append(shape("path", { class: "axis", d: `M${at} ${bottom}v4` }));
            drawing.append(shape("text", { class: "tick", x: back === 0 ? at + MARGIN.right : at, y: height - 5, "text-anchor": back === 0 ? "end" : "middle" }, label));
        }
        const names = this.#drawUnknown(drawing, past, begin, x, bottom);
        this.kind.draw(drawing, steps.length > 0 ? [steps] : [], x, y);
        drawing.append(...names);
        if (this.#moment !== null) {
            drawing.append(shape("path", { class: "cursor", d: `M${x(this.#moment)} ${MARGIN.top}V${bottom}` }));
        }
        this.plot.replaceChildren(drawing);
        this.#write();
    }

    /** Returns the names of the unknown times, which are drawn on top of everything else. */
    #drawUnknown(drawing, past, begin, x, bottom) {
        const names = [];
        const gap = past.end === null ? null : past.gap();
        if (gap !== null) {
            const [from, to] = [x(gap.from), x(gap.to)];
            drawing.append(shape("rect", { class: "gap", x: from, y: MARGIN.top, width: Math.max(0, to - from), height: bottom - MARGIN.top }));
            if (to - from > 56) {
                names.push(shape("text", { class: "gap-name", x: (from + to) / 2, y: (MARGIN.top + bottom) / 2, "text-anchor": "middle" }, "no data"));
            }
        }
        if (past.end !== null && begin < 0) {
            const isNarrow = x(0) < MARGIN.left + 56;
            drawing.append(shape("path", { class: "restart", d: `M${x(0)} ${MARGIN.top}V${bottom}` }));
            names.push(shape("text", { class: "gap-name", x: x(0) + (isNarrow ? 4 : -4), y: MARGIN.top + 11, "text-anchor": isNarrow ? "start" : "end" }, "started"));
        }
        return names;
    }

    #point(event) {
        const box = this.plot.getBoundingClientRect();
        const width = box.width - MARGIN.left - MARGIN.right;
        const part = (event.clientX - box.left - MARGIN.left) / width;
        this.#read(this.#past.end === null ? null : this.#past.end - (1 - Math.min(1, Math.max(0, part))) * this.#window);
    }

    #key(event) {
        const steps = (this.#past?.steps ?? []).filter((step) => step.to > this.#past.end - this.#window);
        if (steps.length === 0) {
            return;
        }
        const found = this.#moment === null ? steps.length - 1 : steps.findIndex((step) => step.to >= this.#moment);
        const index = found < 0 ? steps.length - 1 : found;
        const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 6, PageDown: -6, Home: -steps.length, End: steps.length };
        if (event.key === "Escape") {
            this.#read(null);
        } else if (event.key in moves) {
            event.preventDefault();
            const step = steps[Math.min(steps.length - 1, Math.max(0, index + moves[event.key]))];
            this.#read((step.from + step.to) / 2);
        }
        this.#describe();
    }

    /** Selects a moment, in the other charts too. */
    #read(moment) {
        for (const chart of [this, ...this.peers]) {
            chart.#moment = moment;
            chart.draw(this.#past);
        }
    }

    /** The selected step, or the latest. */
    #step() {
        const { steps, end } = this.#past;
        if (end === null) {
            return undefined;
        }
        if (this.#moment !== null && this.#moment < end - this.#window) {
            this.#moment = null;
        }
        const moment = this.#moment;
        const known = moment === null ? steps.at(-1) : steps.find((step) => step.from <= moment && moment <= step.to);
        const gap = this.#past.gap();
        return gap !== null && (moment === null || moment > gap.from) ? gap : known;
    }

    #write() {
        const step = this.#step();
        this.kind.series.forEach(([key], index) => say(this.values[index], step && !step.isGap ? this.kind.value(step[key]) : "–"));
        say(this.momentText, this.#when(step));
        // While the chart has the focus, a screen reader only reads it out when the user moves, and not every two seconds.
        if (document.activeElement !== this.plot) {
            this.#describe();
        }
    }

    #when(step) {
        const { end, steps } = this.#past;
        const back = end === null ? 0 : Math.round(end - (this.#moment ?? end));
        const when = this.#moment === null || back === 0 ? "Now" : ago(back);
        if (end === null || (step === undefined && steps.length === 0)) {
            return "The first values appear ten seconds after the start of the gateway";
        }
        if (step === undefined) {
            return this.#moment < 0 ? `${when}: before the gateway was started` : `${when}: not known yet`;
        }
        return step.isGap ? `${when}: no data` : `${when} (over ${decimal(1).format(step.to - step.from)} s)`;
    }

    #describe() {
        if (this.#past === null) {
            return;
        }
        const step = this.#step();
        const values = this.kind.series.map(([key, name]) => `${name} ${this.kind.value(step?.[key])}`);
        const text = step && !step.isGap ? `${this.#when(step)}: ${values.join("; ")}` : this.#when(step);
        this.plot.setAttribute("aria-valuemin", String(-this.#window));
        this.plot.setAttribute("aria-valuenow", String(this.#moment === null ? 0 : Math.round(this.#moment - this.#past.end)));
        this.plot.setAttribute("aria-valuetext", text);
    }
}

/** The steps in groups without gaps. */
function runs(steps) {
    const all = [];
    let previous = null;
    for (const step of steps) {
        if (!step.isGap) {
            if (previous !== null && !previous.isGap) {
                all[all.length - 1].push(step);
            } else {
                all.push([step]);
            }
        }
        previous = step;
    }
    return all;
}

/** A line that is level within each step. */
function stairs(run, x, height, begin = "M") {
    return run.map((step, index) => `${index === 0 ? `${begin}${x(step.from)} ${height(step)}` : `V${height(step)}`}H${x(step.to)}`).join("");
}

const RATES = {
    series: [
        ["hits", "from memory", "hits"],
        ["others", "upstream was called", "others"],
        ["passed", "not for the cache", "passed"],
    ],
    isStacked: true,
    tick: (value) => decimal(2).format(value),
    value: (value) => `${decimal(value < 10 ? 1 : 0).format(value ?? 0)}/s`,

    /** From 0 to a round number above the largest value. */
    scale(steps) {
        const most = Math.max(1, ...steps.map((step) => step.hits + step.others + step.passed));
        const size = 10 ** Math.floor(Math.log10(most / 4));
        const distance = [1, 2, 2.5, 5, 10].map((factor) => factor * size).find((step) => step * 4 >= most) ?? 10 * size;
        return { ticks: [0, 1, 2, 3, 4].map((index) => index * distance), part: (value) => value / (4 * distance) };
    },

    draw(drawing, all, x, y) {
        const keys = RATES.series.map(([key]) => key);
        for (const run of all) {
            const below = (step, count) => keys.slice(0, count).reduce((sum, key) => sum + step[key], 0);
            keys.forEach((key, index) => {
                if (run.every((step) => step[key] === 0)) {
                    return;
                }
                const top = stairs(run, x, (step) => y(below(step, index + 1)));
                const back = [...run].reverse().map((step) => ({ from: step.to, to: step.from, step }));
                const bottom = stairs(back, x, ({ step }) => y(below(step, index)), "L");
                drawing.append(shape("path", { class: `band ${key}`, d: `${top}${bottom}Z` }));
                drawing.append(shape("path", { class: `edge ${key}`, d: top }));
            });
        }
    },
};

const LATENCIES = {
    series: [
        ["hits50", "from memory, p50", "hits"],
        ["hits99", "from memory, p99", "hits p99"],
        ["others50", "upstream was called, p50", "others"],
        ["others99", "upstream was called, p99", "others p99"],
    ],
    isStacked: false,
    tick: brief,
    value: (value) => (value === null || value === undefined ? "none" : brief(value)),

    /** From one power of ten to another, around all values. */
    scale(steps) {
        const values = steps.flatMap((step) => LATENCIES.series.map(([key]) => step[key])).filter((value) => value > 0);
        const least = values.length > 0 ? Math.floor(Math.log10(Math.min(...values)) + 1e-9) : -4;
        const most = values.length > 0 ? Math.ceil(Math.log10(Math.max(...values)) - 1e-9) : 0;
        const decades = Math.max(2, most - least);
        const ticks = Array.from({ length: decades + 1 }, (_, index) => 10 ** (least + index));
        return { ticks, part: (value) => (Math.log10(value) - least) / decades };
    },

    draw(drawing, all, x, y) {
        for (const [key, , className] of LATENCIES.series) {
            // Without responses there is no latency.
            const known = all.flatMap((run) => runs(run.map((step) => ({ ...step, isGap: step[key] === null }))));
            const path = known.map((run) => stairs(run, x, (step) => y(step[key]))).join("");
            drawing.append(shape("path", { class: `line ${className}`, d: path }));
        }
    },
};
