"use strict";

// Figures and times as people read them, and elements to put them in. Nothing here keeps anything.

const UNKNOWN = "not known yet";
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const decimal = (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** As digits, all of them. */
function count(value) {
    return grouped.format(value);
}

/** A part of 1 as per cent. Never rounded up to all, nor down to nothing. */
function ratio(value) {
    const percent = value * 100;
    if (percent > 99.9 && percent < 100) {
        return `${(Math.floor(percent * 1000) / 1000).toFixed(3)} %`;
    }
    return percent > 0 && percent < 0.1 ? "below 0.1 %" : `${decimal(1).format(percent)} %`;
}

/** A short time with its unit: 42 µs, 1.3 ms, 2.1 s. */
function brief(seconds) {
    const size = Math.abs(seconds);
    if (size === 0) {
        return "0 s";
    }
    if (size < 0.9995e-3) {
        return `${significant.format(seconds * 1e6)} µs`;
    }
    return size < 0.9995 ? `${significant.format(seconds * 1e3)} ms` : `${significant.format(seconds)} s`;
}

const SPANS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** A long time in its two largest units: 1 h 18 min. */
function span(seconds) {
    const sign = seconds < 0 ? "−" : "";
    let rest = Math.abs(seconds);
    if (rest < 10) {
        return rest === 0 ? "0 s" : sign + (rest < 1 ? brief(rest) : `${decimal(1).format(rest)} s`);
    }
    rest = Math.floor(rest);
    const first = SPANS.findIndex(([, length]) => rest >= length);
    const parts = SPANS.slice(first, first + 2).map(([unit, length]) => {
        const whole = Math.floor(rest / length);
        rest -= whole * length;
        return whole > 0 ? `${count(whole)} ${unit}` : "";
    });
    return sign + parts.filter(Boolean).join(" ");
}

/** Whole seconds, for what is said every second. */
function ago(seconds) {
    // The difference of two times in seconds is inexact: 32.001 - 2.001 is less than 30.
    const milliseconds = Math.round(seconds * 1000);
    return `${span(Math.max(0, Math.floor(milliseconds / 1000)))} ago`;
}

/** Bytes in the unit that suits them. */
function bytes(value) {
    const units = ["bytes", "KiB", "MiB", "GiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${unit === 0 ? count(value) : significant.format(value)} ${units[unit]}`;
}

/** A moment on this machine's clock; with its day where that isn't today. */
function clockTime(ms) {
    const date = new Date(ms);
    const time = date.toLocaleTimeString("en-GB");
    const isToday = date.toDateString() === new Date().toDateString();
    return isToday ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}

/** The same with nothing left out. */
function fullTime(ms) {
    const zone = { timeZoneName: "longOffset" };
    return new Date(ms).toLocaleString("en-GB", { dateStyle: "full", timeStyle: "medium" }) +
        ` (${new Intl.DateTimeFormat("en-GB", zone).formatToParts(ms).find((part) => part.type === "timeZoneName").value})`;
}

/** How a figure is written. What has a sum of seconds is written with all that is known of it. */
const AS = {
    text: String,
    count,
    ratio,
    span,
    seconds: (value) => `${decimal(value < 1 ? 6 : 3).format(value)} s`,
};

const byId = (id) => document.getElementById(id);

/** Text in which nothing hides, nor turns the rest around: control characters, and those that set a direction, by number. */
function visible(text) {
    const code = (hidden) => `\\u{${hidden.codePointAt(0).toString(16)}}`;
    return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, code);
}

/** An element. Strings among its children become text, whatever they contain. */
function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        made.setAttribute(name, value);
    }
    return add(made, ...children);
}

/** Puts elements and text at the end of one. */
function add(parent, ...children) {
    parent.append(...children.map((child) => (typeof child === "string" ? visible(child) : child)));
    return parent;
}

/** The same in a drawing. */
function shape(tag, attributes = {}, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) {
        made.setAttribute(name, value);
    }
    made.textContent = text;
    return made;
}

/** Says it, if it doesn't say so already: what is selected stays selected, and nothing is announced twice. */
function say(place, text) {
    const shown = visible(text);
    if (place.textContent !== shown) {
        place.textContent = shown;
    }
}

/** Shows a figure, and keeps what was read for who compares it. */
function show(place, value, as = place.dataset.as) {
    const isKnown = value !== null && value !== undefined;
    place.dataset.value = JSON.stringify(isKnown ? value : null);
    place.classList.toggle("unknown", !isKnown);
    place.classList.toggle("zero", value === 0);
    place.classList.toggle("bad", place.dataset.bad === "above-zero" && value > 0);
    say(place, isKnown ? AS[as](value) : (place.dataset.none ?? UNKNOWN));
}

/** An element for a figure, of which there are as many as the gateway tells of. */
function figure(tag, name, value, as = "count") {
    const place = element(tag, { "data-figure": name });
    show(place, value, as);
    return place;
}

/** What is below a dotted name, or undefined. */
function at(value, path) {
    return path.split(".").reduce((inner, name) => inner?.[name], value);
}
