// Requests as they end, from /tail. The stream is read with fetch, because an EventSource cannot send the token.

/** How many requests are shown, and how many wait while the list is held. */
const MOST_ROWS = 200;

const TAIL = ["Time", "Request", "Result", "Status", "Took", "Caller"];

const tail = {
    /** Stops the stream. `null` if there is none. */
    stopping: null,
    isHeld: false,
    isHovered: false,
    /** What has come while the list is held, and how many more than fit. */
    waiting: [],
    dropped: 0,
};

function tailQuery() {
    const filters = [...new FormData(byId("tail-form"))].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value !== "");
    return filters.length === 0 ? "tail" : `tail?${new URLSearchParams(filters)}`;
}

/** Reads the stream until it ends or is stopped. */
async function readTail() {
    const stopping = new AbortController();
    tail.stopping = stopping;
    tail.dropped = 0;
    fillTailHeader();
    byId("tail-scroll").hidden = false;
    showTailState("Connecting …");
    let why = "the gateway has closed the stream";
    try {
        const response = await request(tailQuery(), stopping.signal);
        showTailState();
        announce("Requests are shown as they end.");
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let text = ""; ;) {
            const { value, done } = await reader.read();
            if (done || tail.stopping !== stopping) {
                break;
            }
            const events = (text + value).split("\n\n");
            text = events.pop();
            why = takeTail(events) ?? why;
        }
    } catch (error) {
        why = describe(error);
    }
    if (tail.stopping === stopping) {
        stopTail(`Stopped: ${why}.`);
    }
}

/** Shows the events of the stream. Returns why it ends, if they say so. */
function takeTail(events) {
    let why;
    const requests = [];
    for (const event of events) {
        const fields = Object.fromEntries(event.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
        if (fields.data === undefined) {
            continue;
        }
        const data = JSON.parse(fields.data);
        if (fields.event === "end") {
            why = data.why;
        } else if (fields.event === "dropped") {
            tail.dropped += data.dropped;
        } else {
            requests.push(data);
        }
    }
    tail.waiting = [...tail.waiting, ...requests].slice(-MOST_ROWS);
    if (!tail.isHeld && !tail.isHovered) {
        showWaiting();
    }
    showTailState();
    return why;
}

/** The latest comes first. */
function showWaiting() {
    const body = byId("tail-rows").tBodies[0];
    body.prepend(...tail.waiting.map(tailRow).reverse());
    tail.waiting = [];
    while (body.rows.length > MOST_ROWS) {
        body.lastElementChild.remove();
    }
}

function fillTailHeader() {
    const header = byId("tail-rows").tHead.rows[0];
    if (header.cells.length === 0) {
        header.append(...TAIL.map((name) => element("th", { scope: "col", role: "columnheader", class: name === "Took" ? "num" : "" }, name)));
    }
}

function tailRow(event) {
    const { time_ms: time, method, path, operation, result, miss, detail, failure, status, total_ms: took, caller, client, user_agent: agent } = event;
    const isBad = status === undefined || status >= 500 || status === 401 || status === 403;
    const why = [...new Set([miss, detail, failure])].filter(Boolean).join(", ");
    const cell = (name, type, ...children) => element("td", { role: "cell", "data-label": name, class: type }, ...children);
    return element("tr", { role: "row", class: isBad ? "is-bad" : "" },
        cell(TAIL[0], "time", clockTime(time)),
        cell(TAIL[1], "query", `${method} ${path}`, element("span", { class: "note who" }, operation)),
        cell(TAIL[2], "words", result, element("span", { class: "note who" }, why)),
        cell(TAIL[3], "words", `${isBad ? "▲ " : ""}${status ?? "none"}`),
        cell(TAIL[4], "num", brief(took / 1000)),
        cell(TAIL[5], "words", element("span", { class: "mono" }, caller ?? "none"), element("span", { class: "note who" }, [client, agent].filter(Boolean).join(" · "))));
}

/** `words`: what is said in place of the state. */
function showTailState(words) {
    const isOpen = tail.stopping !== null;
    say(byId("tail-start"), isOpen ? "Stop" : "Start");
    byId("tail-hold").hidden = !isOpen;
    byId("tail-hold").setAttribute("aria-pressed", String(tail.isHeld));
    say(byId("tail-hold"), tail.isHeld ? "Go on" : "Hold");
    const isFull = tail.waiting.length === MOST_ROWS;
    const parts = [isOpen ? (tail.waiting.length > 0 ? `Held: ${isFull ? "at least " : ""}${tail.waiting.length} new.` : "Live.") : ""];
    if (tail.dropped > 0) {
        parts.push(`${count(tail.dropped)} were dropped, because this page was too slow.`);
    }
    say(byId("tail-note"), words ?? parts.join(" "));
}

function stopTail(words = "Stopped.") {
    tail.stopping?.abort();
    tail.stopping = null;
    showWaiting();
    showTailState(words);
    announce(words);
}

/** Removes what was shown. */
function clearTail() {
    if (tail.stopping !== null) {
        stopTail();
    }
    showTailState("");
    byId("tail-rows").tBodies[0].replaceChildren();
    byId("tail-scroll").hidden = true;
}

function holdTail(change) {
    Object.assign(tail, change);
    if (!tail.isHeld && !tail.isHovered) {
        showWaiting();
    }
    if (tail.stopping !== null) {
        showTailState();
    }
}

byId("tail-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (tail.stopping === null) {
        readTail();
    } else {
        stopTail();
    }
});
byId("tail-hold").addEventListener("click", () => holdTail({ isHeld: !tail.isHeld }));
byId("tail-scroll").addEventListener("mouseenter", () => holdTail({ isHovered: true }));
byId("tail-scroll").addEventListener("mouseleave", () => holdTail({ isHovered: false }));

/** What can be chosen as filters. */
function offerFilters({ operations, results }) {
    for (const [list, names] of [["tail-operations", operations.map(({ operation }) => operation)], ["tail-results", Object.keys(results)]]) {
        keep(byId(list), names, (name) => element("option", { value: name }), () => {});
    }
}
