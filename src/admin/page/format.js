"use strict";

// Formats figures and times for people, and makes the elements that show them. Nothing here keeps state.

const UNKNOWN = "not known yet";
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const decimal = (digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits });
const significant = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** All digits below 10,000, above that three: 12,300 is 12.3 k. Titles and `data-value` have all of them. */
function count(value) {
    if (Math.abs(value) < 10_000) {
        return grouped.format(value);
    }
    // 999,950 would be 1,000 k.
    const [unit, size] = [["k", 1e3], ["M", 1e6], ["G", 1e9], ["T", 1e12]].findLast(([, size]) => Math.abs(value) >= 0.9995 * size);
    return `${significant.format(value / size)} ${unit}`;
}

/** A number of which two digits matter. */
const about = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

/** A fraction as a percentage. It is never rounded up to 100 % or down to 0 %. */
function ratio(value) {
    const percent = value * 100;
    if (percent > 99.9 && percent < 100) {
        return "99.9 %";
    }
    return percent > 0 && percent < 0.1 ? "below 0.1 %" : `${decimal(1).format(percent)} %`;
}

/** A small fraction as a percentage, with two digits below 1 %. */
function share(value) {
    const percent = value * 100;
    if (percent === 0 || percent >= 1) {
        return ratio(value);
    }
    return percent < 0.01 ? "below 0.01 %" : `${about.format(percent)} %`;
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
    let left = Math.abs(seconds);
    if (left < 10) {
        return left === 0 ? "0 s" : sign + (left < 1 ? brief(left) : `${decimal(1).format(left)} s`);
    }
    left = Math.floor(left);
    const first = SPANS.findIndex(([, length]) => left >= length);
    const parts = SPANS.slice(first, first + 2).map(([unit, length]) => {
        const whole = Math.floor(left / length);
        left -= whole * length;
        return whole > 0 ? `${count(whole)} ${unit}` : "";
    });
    return sign + parts.filter(Boolean).join(" ");
}

/** An estimated time, with two digits: 35 min, 1.7 h. */
function roughly(seconds) {
    const [unit, length] = SPANS.find(([, length]) => seconds >= length) ?? ["s", 1];
    return `${about.format(seconds / length)} ${unit}`;
}

/** In whole seconds, for text that changes every second. */
function ago(seconds) {
    // The difference of two times in seconds is inexact: 32.001 - 2.001 is less than 30.
    const milliseconds = Math.round(seconds * 1000);
    return `${span(Math.max(0, Math.floor(milliseconds / 1000)))} ago`;
}

/** With a unit that fits the size. */
function bytes(value) {
    const units = ["bytes", "KiB", "MiB", "GiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${unit === 0 ? count(value) : significant.format(value)} ${units[unit]}`;
}

/** A time on this machine's clock, with the day if that is not today. */
function clockTime(ms) {
    const date = new Date(ms);
    const time = date.toLocaleTimeString("en-GB");
    const isToday = date.toDateString() === new Date().toDateString();
    return isToday ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}

/** The same with date and time zone. */
function fullTime(ms) {
    const zone = { timeZoneName: "longOffset" };
    return new Date(ms).toLocaleString("en-GB", { dateStyle: "full", timeStyle: "medium" }) +
        ` (${new Intl.DateTimeFormat("en-GB", zone).formatToParts(ms).find((part) => part.type === "timeZoneName").value})`;
}

/** How a figure is written. */
const AS = {
    text: String,
    count,
    ratio,
    share,
    frequency: (value) => about.format(value),
    span,
    /** How long until something may happen. */
    wait: (value) => (value === 0 ? "now" : `in ${span(value)}`),
    brief,
    bytes,
};

const byId = (id) => document.getElementById(id);

/** Text in which control characters, and characters that are invisible or change the direction, are shown by number. */
function visible(text) {
    const code = (hidden) => `\\u{${hidden.codePointAt(0).toString(16)}}`;
    return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, code);
}

/** Makes an element. Strings among its children become text, whatever they contain. */
function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        made.setAttribute(name, value);
    }
    return add(made, ...children);
}

/** Appends elements and text. */
function add(parent, ...children) {
    parent.append(...children.map((child) => (typeof child === "string" ? visible(child) : child)));
    return parent;
}

/** Makes an element of a drawing. */
function shape(tag, attributes = {}, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) {
        made.setAttribute(name, value);
    }
    made.textContent = text;
    return made;
}

/** Sets the text if it is different, so that a selection stays and nothing is announced twice. */
function say(place, text) {
    const shown = visible(text);
    if (place.textContent !== shown) {
        place.textContent = shown;
    }
}

/** Shows a figure. `data-value` keeps the exact value, for tests. */
function show(place, value, as = place.dataset.as) {
    const isKnown = value !== null && value !== undefined;
    place.dataset.value = JSON.stringify(isKnown ? value : null);
    place.classList.toggle("unknown", !isKnown);
    place.classList.toggle("zero", value === 0);
    place.classList.toggle("bad", place.dataset.bad === "above-zero" && value > 0);
    const text = isKnown ? AS[as](value) : (place.dataset.none ?? UNKNOWN);
    say(place, text);
    // What was rounded has all its digits in the title.
    if (typeof value === "number" && text !== grouped.format(value)) {
        place.title = Number.isInteger(value) ? grouped.format(value) : String(value);
    } else {
        place.removeAttribute("title");
    }
}

/** Makes an element for a figure. */
function figure(tag, name, value, as = "count") {
    const place = element(tag, { "data-figure": name });
    show(place, value, as);
    return place;
}

/** The value at a dotted path, or undefined. */
function at(value, path) {
    return path.split(".").reduce((inner, name) => inner?.[name], value);
}
