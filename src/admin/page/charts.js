// Two small charts of what happened between one response of the gateway and the next. Where nothing is known there is a
// gap, and nothing is drawn in it.

const WINDOW = 300;
/** Longer than a poll and the interval before it may take: the page or its machine was suspended. */
const LONGEST_STEP = 15;

/** The quantile of cumulative buckets, as Prometheus' histogram_quantile computes it. */
function quantile(part, bounds, buckets, total) {
    if (!(total > 0)) {
        return null;
    }
    const rank = part * total;
    const found = buckets.findIndex((below) => below >= rank);
    if (found < 0) {
        return bounds[bounds.length - 1];
    }
    const [lower, before] = found === 0 ? [0, 0] : [bounds[found - 1], buckets[found - 1]];
    const inside = buckets[found] - before;
    return inside > 0 ? lower + ((bounds[found] - lower) * (rank - before)) / inside : bounds[found];
}

/** Rates and percentiles between two responses, or null if they cannot be compared. */
function difference(before, after) {
    const seconds = after.uptime_seconds - before.uptime_seconds;
    const all = (status) => Object.values(status.requests.results).reduce((sum, value) => sum + value, 0);
    const hits = after.savings.hits - before.savings.hits;
    const others = after.savings.answered - before.savings.answered - hits;
    const passed = all(after) - all(before) - hits - others;
    if (!(seconds > 0) || hits < 0 || others < 0 || passed < 0) {
        return null;
    }
    const step = { hits: hits / seconds, others: others / seconds, passed: passed / seconds };
    for (const kind of ["hits", "others"]) {
        const [old, now] = [before.latency[kind], after.latency[kind]];
        const buckets = now.buckets.map((value, index) => value - old.buckets[index]);
        step[`${kind}50`] = quantile(0.5, after.latency.bounds, buckets, now.count - old.count);
        step[`${kind}99`] = quantile(0.99, after.latency.bounds, buckets, now.count - old.count);
    }
    return step;
}

/** What the charts show: steps from one moment to another, in seconds of this page's clock. */
class Past {
    steps = [];
    end = null;
    #last = null;
    #isBroken = false;

    /** Adds a response. Returns whether the gateway was restarted, so that it counts from zero. */
    add(status, now) {
        const isRestart = this.#last !== null && status.uptime_seconds < this.#last.uptime_seconds;
        if (this.end !== null) {
            const isComparable = !isRestart && !this.#isBroken && now - this.end <= LONGEST_STEP;
            const step = isComparable ? difference(this.#last, status) : null;
            this.#push({ from: this.end, to: now, isRestart, ...(step ?? { isGap: true }) });
        }
        [this.#last, this.end, this.#isBroken] = [status, now, false];
        return isRestart;
    }

    /** There was no response, or no request. The next response says nothing about the time until then. */
    gap(now) {
        if (this.end !== null) {
            this.#push({ from: this.end, to: now, isRestart: false, isGap: true });
            this.end = now;
        }
        this.#isBroken = true;
    }

    clear() {
        [this.steps, this.end, this.#last, this.#isBroken] = [[], null, null, false];
    }

    #push(step) {
        if (step.to > step.from) {
            this.steps = this.steps.filter((kept) => kept.to > step.to - WINDOW);
            this.steps.push(step);
        }
    }
}

const MARGIN = { top: 8, right: 10, bottom: 22, left: 58 };

/** A chart: the legend, which also shows the values, and the drawing. */
class Chart {
    /** Charts that show the same moment. */
    peers = [];
    #moment = null;
    #past = null;

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

    draw(past) {
        this.#past = past;
        const [width, height] = [this.plot.clientWidth, this.plot.clientHeight];
        if (past === null || width === 0) {
            return;
        }
        const end = past.end ?? 0;
        const [left, right, bottom] = [MARGIN.left, width - MARGIN.right, height - MARGIN.bottom];
        const x = (time) => Math.max(left, right + ((time - end) / WINDOW) * (right - left));
        const drawing = shape("svg", { width, height, "aria-hidden": "true", focusable: "false" });
        const scale = this.kind.scale(past.steps.filter((step) => !step.isGap));
        const y = (value) => bottom - scale.part(value) * (bottom - MARGIN.top);
        for (const tick of scale.ticks) {
            drawing.append(shape("path", { class: tick === scale.ticks[0] ? "axis" : "grid", d: `M${left} ${y(tick)}H${right}` }));
            drawing.append(shape("text", { class: "tick", x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, this.kind.tick(tick)));
        }
        for (let minute = 5; minute >= 0; minute -= 1) {
            const at = x(end - minute * 60);
            const label = minute === 0 ? "now" : minute === 5 ? "−5 min" : `−${minute}`;
            drawing.append(shape("path", { class: "axis", d: `M${at} ${bottom}v4` }));
            drawing.append(shape("text", { class: "tick", x: minute === 0 ? at + MARGIN.right : at, y: height - 5, "text-anchor": minute === 0 ? "end" : "middle" }, label));
        }
        const names = this.#drawGaps(drawing, past, x, bottom);
        this.kind.draw(drawing, runs(past.steps), x, y);
        drawing.append(...names);
        if (this.#moment !== null) {
            drawing.append(shape("path", { class: "cursor", d: `M${x(this.#moment)} ${MARGIN.top}V${bottom}` }));
        }
        this.plot.replaceChildren(drawing);
        this.#write();
    }

    /** Returns their names, which are drawn on top of everything else. */
    #drawGaps(drawing, { steps }, x, bottom) {
        const names = [];
        let open = null;
        for (const step of [...steps, { isGap: false }]) {
            if (step.isGap) {
                open = { from: open?.from ?? step.from, to: step.to };
            } else if (open !== null) {
                const [from, to] = [x(open.from), x(open.to)];
                drawing.append(shape("rect", { class: "gap", x: from, y: MARGIN.top, width: Math.max(0, to - from), height: bottom - MARGIN.top }));
                if (to - from > 56) {
                    names.push(shape("text", { class: "gap-name", x: (from + to) / 2, y: (MARGIN.top + bottom) / 2, "text-anchor": "middle" }, "no data"));
                }
                open = null;
            }
        }
        for (const { to } of steps.filter((step) => step.isRestart)) {
            drawing.append(shape("path", { class: "restart", d: `M${x(to)} ${MARGIN.top}V${bottom}` }));
            names.push(shape("text", { class: "gap-name", x: x(to) - 4, y: MARGIN.top + 11, "text-anchor": "end" }, "restart"));
        }
        return names;
    }

    #point(event) {
        const box = this.plot.getBoundingClientRect();
        const width = box.width - MARGIN.left - MARGIN.right;
        const part = (event.clientX - box.left - MARGIN.left) / width;
        this.#read(this.#past.end - (1 - Math.min(1, Math.max(0, part))) * WINDOW);
    }

    #key(event) {
        const steps = this.#past?.steps ?? [];
        if (steps.length === 0) {
            return;
        }
        const found = this.#moment === null ? steps.length - 1 : steps.findIndex((step) => step.to >= this.#moment);
        const index = found < 0 ? steps.length - 1 : found;
        const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 15, PageDown: -15, Home: -steps.length, End: steps.length };
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
        if (this.#moment !== null && this.#moment < end - WINDOW) {
            this.#moment = null;
        }
        return this.#moment === null ? steps[steps.length - 1] : steps.find((step) => step.from <= this.#moment && this.#moment <= step.to);
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
        const back = Math.round(end - (this.#moment ?? end));
        const when = this.#moment === null || back === 0 ? "Now" : ago(back);
        if (step === undefined) {
            return steps.length === 0 ? "The first values appear with the next update" : `${when}: before this page was opened`;
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
