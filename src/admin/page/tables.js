// Lists and tables, brought up to date in place: what has the focus keeps it.

/** What each result means, in the order of the metrics. The first five are from memory. */
const RESULTS = {
    hit: "from memory, fresh",
    revalidating: "from memory, stale: asked for again meanwhile",
    backoff: "from memory, stale: upstream has just failed, or is to be left alone",
    negative: "from memory: upstream’s 400, 404 or 405 of just before",
    denied: "from memory: upstream’s refusal of just before",
    coalesced: "from the upstream call of another request",
    miss: "from upstream: nothing was stored, or this caller was not proved",
    expired: "from upstream: what was stored had expired, was invalidated, or wasn’t wanted",
    stale: "stale from memory: upstream was asked and has failed",
    "stale-if-slow": "stale from memory: upstream was asked and is slow",
    bypass: "forwarded as it is, though it is an operation",
    "pass-through": "forwarded: none of the operations",
    refused: "refused by the gateway itself",
    aborted: "not answered: the client has hung up",
};

/** Figures by name; those that are gone go. */
function tally(list, prefix, figures, none = "none") {
    const names = Object.keys(figures);
    if (names.length === 0) {
        list.replaceChildren(element("div", {}, element("dt", { class: "note" }, none), element("dd")));
        return;
    }
    keep(list, names, (name) => element("div", {}, element("dt", {}, name), figure("dd", `${prefix}.${name}`, 0)), (row, name) =>
        show(row.lastElementChild, figures[name], "count"));
}

/** What has been counted at all, and what is shown in any case: the others are 0. */
function counted(figures, ...always) {
    return Object.fromEntries(Object.entries(figures).filter(([name, value]) => value > 0 || always.includes(name)));
}

/** One child per key, in their order: new ones are made, all are brought up to date, others go. */
function keep(parent, keys, make, update) {
    const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
    const wanted = keys.map((key) => {
        let child = known.get(key);
        if (child === undefined) {
            child = make(key);
            child.dataset.key = key;
        }
        update(child, key);
        return child;
    });
    const held = new Set(wanted);
    [...parent.children].filter((child) => !held.has(child)).forEach((child) => child.remove());
    wanted.forEach((child, index) => {
        if (parent.children[index] !== child) {
            parent.insertBefore(child, parent.children[index] ?? null);
        }
    });
}

function showResults(requests) {
    keep(
        byId("results").tBodies[0],
        Object.keys({ ...RESULTS, ...requests.results }),
        (name) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, RESULTS[name] ?? ""), element("td", { class: "num", "data-figure": `requests.results.${name}` })),
        (row, name) => show(row.lastElementChild, requests.results[name] ?? 0, "count"),
    );
    const byName = new Map(requests.operations.map((each) => [each.operation, each.results]));
    const table = byId("operations");
    keep(
        table.tBodies[0],
        [...byName.keys()],
        (name) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, element("dl", { class: "tally inline" }))),
        (row, name) => tally(row.querySelector("dl"), `requests.operations.${name}`, counted(byName.get(name))),
    );
    table.hidden = byName.size === 0;
}

const STATES = {
    fresh: ["●", "fresh"],
    revalidate: ["◐", "stale, given while asked for again"],
    "if-error": ["○", "stale, given if upstream fails"],
    invalidated: ["◌", "invalidated, given once upstream has confirmed it"],
    gone: ["×", "gone"],
};

const COLUMNS = [
    { key: "query", name: "Query" },
    { key: "operation", name: "Operation" },
    { key: "project", name: "Project" },
    { key: "state", name: "State", rank: (entry) => Object.keys(STATES).indexOf(entry.state) },
    { key: "age_seconds", name: "Age", isNumber: true },
    { key: "ttl_seconds", name: "TTL", isNumber: true },
    { key: "hits", name: "Hits", isNumber: true },
    { key: "bytes", name: "Size", isNumber: true },
];

/** A longer query is folded. */
const LONG = 160;

/** The table of what is in the cache. */
class Entries {
    #sort = { key: "hits", isDown: true };
    #shown = null;

    constructor() {
        this.table = byId("entries");
        this.headers = new Map(COLUMNS.map((column) => {
            const button = element("button", { type: "button" }, column.name, element("span", { class: "arrow", "aria-hidden": "true" }));
            button.addEventListener("click", () => this.#sortBy(column));
            return [column.key, element("th", { scope: "col", role: "columnheader", class: column.isNumber ? "num" : "" }, button)];
        }));
        this.table.tHead.rows[0].append(...this.headers.values());
        this.#mark();
    }

    show(entries, total) {
        this.#shown = entries;
        const note = byId("entries-note");
        note.replaceChildren(figure("span", "entries.total", total), total === 1 ? " entry" : " entries",
            entries.length < total ? `; here are the ${count(entries.length)} with most hits` : "",
            total === 0 ? ". What is answered well by upstream appears here." : ".");
        byId("more-entries").hidden = entries.length >= Math.min(total, 1000);
        this.#fill();
    }

    #sortBy({ key, isNumber }) {
        const isSame = this.#sort.key === key;
        this.#sort = { key, isDown: isSame ? !this.#sort.isDown : Boolean(isNumber) };
        this.#mark();
        this.#fill();
    }

    #mark() {
        for (const [key, header] of this.headers) {
            const isSorted = key === this.#sort.key;
            const direction = this.#sort.isDown ? "descending" : "ascending";
            header.setAttribute("aria-sort", isSorted ? direction : "none");
            say(header.querySelector(".arrow"), isSorted ? (this.#sort.isDown ? " ↓" : " ↑") : "");
        }
    }

    #fill() {
        const entries = this.#shown ?? [];
        const column = COLUMNS.find(({ key }) => key === this.#sort.key);
        const value = column.rank ?? ((entry) => entry[column.key]);
        const compare = (one, other) => (typeof value(one) === "number" ? value(one) - value(other) : value(one).localeCompare(value(other)));
        const sorted = [...entries].sort((one, other) => (this.#sort.isDown ? compare(other, one) : compare(one, other)));
        // Entries of single callers may have all this in common.
        const times = new Map();
        const byKey = new Map(sorted.map((entry) => {
            const name = JSON.stringify([entry.operation, entry.project, entry.segments, entry.query, entry.headers, entry.sharing]);
            times.set(name, (times.get(name) ?? 0) + 1);
            return [`${name} ${times.get(name)}`, entry];
        }));
        keep(this.table.tBodies[0], [...byKey.keys()], (key) => entryRow(byKey.get(key)), (row, key) => updateEntry(row, byKey.get(key)));
        this.table.parentElement.hidden = entries.length === 0;
    }
}

function entryRow(entry) {
    const cells = COLUMNS.map(({ key, name, isNumber }) =>
        element("td", { role: "cell", "data-label": name, class: `${key.replace(/_.*/, "")}${isNumber ? " num" : ""}` }));
    const [query, operation, project] = cells;
    add(query, ...queryWords(entry));
    add(operation, entry.operation);
    add(project, entry.project === "" ? "–" : entry.project);
    return element("tr", { role: "row" }, ...cells);
}

function queryWords({ query, segments, headers, sharing }) {
    const words = [];
    if (query === "") {
        words.push(element("span", { class: "note" }, "no query"));
    } else if (query.length > LONG) {
        words.push(element("details", {}, element("summary", {}, `${query.slice(0, LONG)}…`), query));
    } else {
        words.push(query);
    }
    const keyed = Object.entries({ ...segments, ...headers }).map(([name, value]) => `${name}: ${value}`);
    const more = sharing === "caller" ? [...keyed, "one caller’s own"] : keyed;
    return [...words, ...more.flatMap((word) => [" ", element("span", { class: "tag" }, word)])];
}

function updateEntry(row, entry) {
    const [, , , state, age, ttl, hits, size] = row.cells;
    const [sign, words] = STATES[entry.state] ?? ["?", entry.state];
    if (state.dataset.state !== entry.state) {
        state.dataset.state = entry.state;
        state.replaceChildren(element("span", { class: "sign", "aria-hidden": "true" }, sign), words);
    }
    say(age, span(Math.round(entry.age_seconds)));
    say(ttl, span(Math.round(entry.ttl_seconds)));
    say(hits, count(entry.hits));
    say(size, bytes(entry.bytes));
    size.title = `${count(entry.bytes)} bytes`;
}

const HEALTH = {
    unknown: ["○", "no answer that counts yet"],
    good: ["●", "answers"],
    failing: ["▲", "fails"],
};

function showUpstream(services) {
    const named = new Map(services.map((service, index) => [`${service.service} ${index}`, service]));
    keep(byId("upstream"), [...named.keys()], (key) => upstreamBlock(named.get(key)), (block, key) => updateUpstream(block, named.get(key)));
}

function upstreamBlock({ service }) {
    const name = `upstream.${service}`;
    const row = (label, ...content) => element("div", {}, element("dt", {}, label), element("dd", {}, ...content));
    const plain = (key, as) => element("span", { "data-figure": `${name}.${key}`, "data-as": as, "data-at": key });
    return element("article", { class: "service" },
        element("h3", {}, service, " ", element("span", { class: "health" })),
        element("p", { class: "url" }),
        element("dl", { class: "tally" },
            row("calls", plain("count", "count")),
            row("time in all", plain("seconds", "seconds")),
            row("on average", element("span", { class: "mean" })),
            row("in flight", plain("in_flight", "count")),
            row("waiting for their turn", plain("queued", "count")),
            row("made once more", plain("retries", "count"))),
        element("h4", {}, "How they ended"),
        element("dl", { class: "tally inline endings" }));
}

function updateUpstream(block, service) {
    const { state, since_seconds: since, last_answer_seconds: answered, last_failure: failure } = service.health;
    const [sign, words] = HEALTH[state] ?? ["?", state];
    const health = block.querySelector(".health");
    health.dataset.state = state;
    const facts = [since === null ? words : `${words}, for ${span(since)}`];
    if (answered !== null) {
        facts.push(`last answer ${answered < 2 ? "just now" : ago(answered)}`);
    }
    if (failure !== null) {
        facts.push(`last failure: ${failure}`);
    }
    say(health, `${sign} ${facts.join("; ")}`);
    say(block.querySelector(".url"), service.url);
    for (const place of block.querySelectorAll("[data-at]")) {
        show(place, service[place.dataset.at]);
    }
    say(block.querySelector(".mean"), service.count > 0 ? brief(service.seconds / service.count) : "–");
    tally(block.querySelector(".endings"), `upstream.${service.service}.requests`, counted(service.requests), "none made yet");
}

const KINDS = {
    denial: "refused", "private-scope": "turned private", outage: "outage", recovery: "recovered", throttled: "throttled",
    "admin-denied": "not let in", "key-suspended": "key held",
    "memory-reached": "memory reached", "memory-free": "memory free", reload: "reloaded", "reload-refused": "reload refused", purge: "purged", mode: "mode",
    "log-level": "log level", stopping: "stopping",
};

function showEvents(events) {
    const newest = [...events].sort((one, other) => other.last_ms - one.last_ms);
    const times = new Map();
    const byKey = new Map(newest.map((event) => {
        const name = JSON.stringify([event.kind, event.what, event.operation, event.project, event.first_ms]);
        times.set(name, (times.get(name) ?? 0) + 1);
        return [`${name} ${times.get(name)}`, event];
    }));
    keep(byId("events"), [...byKey.keys()], (key) => eventItem(byKey.get(key)), (item, key) => updateEvent(item, byKey.get(key)));
    byId("no-events").hidden = events.length > 0;
}

function eventItem(event) {
    const where = [event.operation, event.project && `project ${event.project}`].filter(Boolean).join(", ");
    const kind = (event.is_bad ? "▲ " : "") + (KINDS[event.kind] ?? event.kind);
    return element("li", { class: event.is_bad ? "is-bad" : "" },
        element("time"),
        element("span", { class: "kind" }, kind),
        element("span", { class: "what" }, event.what, where === "" ? "" : element("span", { class: "note" }, ` · ${where}`),
            element("span", { class: "times" })));
}

function updateEvent(item, event) {
    const time = item.querySelector("time");
    time.dateTime = new Date(event.last_ms).toISOString();
    time.title = fullTime(event.last_ms);
    say(time, clockTime(event.last_ms));
    say(item.querySelector(".times"), event.count > 1 ? ` · ${count(event.count)} times since ${clockTime(event.first_ms)}` : "");
}
