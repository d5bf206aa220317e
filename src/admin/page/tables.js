// Lists and tables. They are updated in place, so that an element keeps the focus.

/** What each result means. The first five are from memory. */
const RESULTS = {
    hit: "from memory, fresh",
    revalidating: "from memory, stale, while it is refreshed in the background",
    backoff: "from memory, stale, without a call: the gateway backs off after a failure, a 429 or a 503",
    negative: "from memory: a recent 400, 404 or 405 of upstream",
    denied: "from memory: a recent 401 or 403 of upstream",
    fleet: "from the second tier, where another gateway or an earlier process has stored it",
    coalesced: "from the upstream call of another request",
    miss: "from upstream: nothing was stored, or the caller had no grant",
    expired: "from upstream: the stored response had expired, was invalidated, or was not accepted by the client",
    stale: "from memory, stale: the upstream call has failed",
    "stale-if-slow": "from memory, stale: the upstream call is slow",
    bypass: "relayed unchanged, although it is for an operation",
    "pass-through": "relayed: it is for no operation",
    refused: "answered by the gateway itself, with an error",
    aborted: "not answered: the client disconnected",
};

/** Shows figures by name, and removes those that are gone. */
function tally(list, prefix, figures, none = "none") {
    const names = Object.keys(figures);
    if (names.length === 0) {
        list.replaceChildren(element("div", {}, element("dt", { class: "note" }, none), element("dd")));
        return;
    }
    keep(list, names, (name) => element("div", {}, element("dt", {}, name), figure("dd", `${prefix}.${name}`, 0)), (row, name) =>
        show(row.lastElementChild, figures[name], "count"));
}

/** What the states of the engine mean, beside the causes why there is no connection. */
const ENGINE_STATES = {
    "in-use": "In use.",
    slow: "Not in use: it does not answer in time. It is tried all the time.",
    full: "Full: it has no memory for new data. It accepts nothing new, so no gateway is in sync.",
    starting: "Not in use yet: the first connection is being made.",
};

/** The engine that gateways share. `fleet` is null without one. */
function showFleet(fleet) {
    byId("fleet").hidden = !fleet;
    if (!fleet) {
        return;
    }
    const mean = fleet.mean_lookup_seconds;
    const time = mean === null ? "" : ` A look-up takes ${brief(mean)} on average.`;
    const told = fleet.to_tell === 0 ? "" : ` Not told yet: ${fleet.to_tell} (denials, purges, invalidations and private scopes).`;
    const sync = fleet.in_sync
        ? " In sync: what other gateways have proved counts here."
        : ` Not in sync for ${span(fleet.sync_age_seconds)}: callers that only other gateways have proved are proved here again.`;
    const state = ENGINE_STATES[fleet.state] ?? `Not in use: ${fleet.state}. This gateway works alone.`;
    const keys = ` Its keys are ${fleet.keys}… (the same at all gateways of the fleet).`;
    say(byId("fleet-state"), state + sync + time + told + keys);
    tally(byId("fleet-lookups"), "fleet.lookups", counted(fleet.lookups, "record", "none"));
    tally(byId("fleet-claims"), "fleet.claims", counted(fleet.claims, "led", "answered"));
    tally(byId("fleet-told"), "fleet.told", counted(fleet.told, "told"));
    tally(byId("fleet-stores"), "fleet.stores", counted(fleet.stores, "stored"));
    tally(byId("fleet-faults"), "fleet.faults", counted(fleet.faults), "no fault");
}

/** The figures above 0, and those that are always shown. */
function counted(figures, ...always) {
    return Object.fromEntries(Object.entries(figures).filter(([name, value]) => value > 0 || always.includes(name)));
}

/** Keeps one child for each key, in their order: makes new ones, updates all, removes others. */
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
    const kept = new Set(wanted);
    [...parent.children].filter((child) => !kept.has(child)).forEach((child) => child.remove());
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
    const statuses = requests.statuses ?? {};
    tally(byId("statuses"), "requests.statuses", statuses);
    for (const row of byId("statuses").children) {
        row.lastElementChild.classList.toggle("bad", row.dataset.key === "5xx" && statuses["5xx"] > 0);
    }
    showOperations(requests.operations);
}

const OPERATIONS = ["Operation", "Results", "Not from memory at once", "Relayed unchanged", "From memory, p50 and p99", "Others, p50 and p99"];

function showOperations(operations) {
    const table = byId("operations");
    const header = table.tHead.rows[0];
    if (header.cells.length === 0) {
        header.append(...OPERATIONS.map((name, index) => element("th", { scope: "col", role: "columnheader", class: index > 3 ? "num" : "" }, name)));
    }
    const byName = new Map(operations.map((each) => [each.operation, each]));
    keep(table.tBodies[0], [...byName.keys()], operationRow, (row, name) => updateOperation(row, byName.get(name)));
    table.hidden = byName.size === 0;
}

function operationRow(name) {
    const cell = (index, isNumber, ...children) => element("td", { role: "cell", "data-label": OPERATIONS[index], class: isNumber ? "num" : "words" }, ...children);
    const place = (key) => element("span", { "data-figure": `requests.operations.${name}.latency.${key}`, "data-as": "brief", "data-at": key, "data-none": "none" });
    return element("tr", { role: "row" }, element("th", { scope: "row", role: "rowheader" }, name),
        ...["results", "misses", "bypasses"].map((key, index) => cell(index + 1, false, element("dl", { class: "tally inline", "data-tally": key }))),
        ...["hits", "others"].map((kind, index) => cell(index + 4, true, place(`${kind}50`), " · ", place(`${kind}99`))));
}

/** A gateway of an older version has only the results. */
function updateOperation(row, figures) {
    for (const list of row.querySelectorAll("[data-tally]")) {
        const key = list.dataset.tally;
        tally(list, `requests.operations.${figures.operation}.${key}`, counted(figures[key] ?? {}));
    }
    for (const place of row.querySelectorAll("[data-at]")) {
        show(place, figures.latency?.[place.dataset.at]);
    }
}

/** How many projects the table of stale answers has at most. */
const MOST_PROJECTS = 10;

/** The columns of the tables of stale answers, and how a cell shows the figure of its key. */
const STALENESS = [
    { key: "ratio", name: "Stale answers" },
    { key: "changes_per_hour", name: "Changes per hour", as: "frequency" },
    { key: "ttl_seconds", name: "TTL in force", as: "span" },
    { key: "answers", name: "Answers from memory", as: "count" },
];

/** How often answers from memory differ from upstream's. A gateway of an older version does not say it. */
function showStaleness(operations) {
    byId("staleness").hidden = operations === undefined;
    if (operations === undefined) {
        return;
    }
    const isIdle = operations.every(({ answers }) => answers === 0);
    const byOperation = isIdle ? [] : operations.map((each) => [each.operation, `staleness.${each.operation}`, each]);
    fillStaleness(byId("staleness-operations"), ["Operation"], STALENESS, numbered(byOperation));
    byId("staleness-unknown").hidden = isIdle || operations.every(({ ratio, changes_per_hour: changes }) => ratio !== null && changes !== null);
    byId("no-staleness").hidden = !isIdle;

    const projects = operations.filter((each) => !isIdle && each.projects.length > 1).flatMap(({ operation, projects }) =>
        projects.map((each) => [`${operation} ${each.project}`, `staleness.${operation}.projects.${each.project}`, { operation, ...each }]));
    const shown = [...projects].sort(([, , one], [, , other]) => other.answers - one.answers).slice(0, MOST_PROJECTS);
    byId("staleness-by-project").hidden = shown.length === 0;
    const table = byId("staleness-projects");
    say(table.caption, `By project, in the last hour${shown.length < projects.length ? `: the ${shown.length} with most answers` : ""}`);
    fillStaleness(table, ["Operation", "Project"], STALENESS, numbered(shown));
}

/** Figures by a key of their own, even if names are equal: ids of projects are shortened. */
function numbered(named) {
    const times = new Map();
    return new Map(named.map(([name, prefix, figures]) => {
        times.set(name, (times.get(name) ?? 0) + 1);
        return [`${name} ${times.get(name)}`, { prefix, figures }];
    }));
}

function fillStaleness(table, names, columns, byKey) {
    const header = table.tHead.rows[0];
    if (header.cells.length === 0) {
        header.append(...names.map((name) => element("th", { scope: "col", role: "columnheader" }, name)),
            ...columns.map(({ name }) => element("th", { scope: "col", role: "columnheader", class: "num" }, name)));
    }
    keep(
        table.tBodies[0],
        [...byKey.keys()],
        (key) => stalenessRow(names, columns, byKey.get(key)),
        (row, key) => updateStaleness(row, byKey.get(key).figures),
    );
    table.hidden = byKey.size === 0;
}

function stalenessRow(names, columns, { prefix, figures }) {
    const place = (key, as, none = "unknown") => element("span", { "data-figure": `${prefix}.${key}`, "data-as": as, "data-at": key, "data-none": none });
    const cells = columns.map(({ key, name, as }) => {
        const cell = element("td", { role: "cell", class: `num ${key}`, "data-label": name }, key === "ratio" ? place(key, "share") : place(key, as));
        if (key === "ratio") {
            add(cell, element("span", { class: "note range" }, place("lower", "share"), " to ", place("upper", "share")));
        } else if (key === "changes_per_hour") {
            add(cell, element("span", { class: "note range" }, "one every ", element("span", { class: "interval" })));
        }
        return cell;
    });
    const words = names.map((name, index) =>
        element(index === 0 ? "th" : "td", { role: index === 0 ? "rowheader" : "cell", class: name.toLowerCase(), ...(index === 0 ? { scope: "row" } : {}) }, figures[name.toLowerCase()]));
    return element("tr", { role: "row" }, ...words, ...cells);
}

function updateStaleness(row, figures) {
    const { ratio, changes_per_hour: changes, answers } = figures;
    const share = row.querySelector("[data-at='ratio']");
    share.dataset.none = answers === 0 ? "no answers" : "unknown";
    for (const place of row.querySelectorAll("[data-at]")) {
        show(place, figures[place.dataset.at]);
    }
    share.parentElement.querySelector(".range").hidden = ratio === null;
    const interval = row.querySelector(".interval");
    interval.parentElement.hidden = changes === null || changes === 0;
    say(interval, changes > 0 ? roughly(3600 / changes) : "");
}

const STATES = {
    fresh: ["●", "fresh"],
    revalidate: ["◐", "stale, served while it is refreshed"],
    "if-error": ["○", "stale, served if upstream fails"],
    invalidated: ["◌", "invalidated, served after upstream has confirmed it"],
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

/** Longer queries are folded. */
const LONG = 160;

/** The table of the entries in the cache. */
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
            entries.length < total ? `; the ${count(entries.length)} with most hits are shown` : "",
            total === 0 ? ". Successful responses of upstream appear here." : ".");
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
        // Entries of different callers may be equal in all of this.
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
    const more = sharing === "caller" ? [...keyed, "for one caller only"] : keyed;
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
    size.title = `${grouped.format(entry.bytes)} bytes`;
}

const HEALTH = {
    unknown: ["○", "no result yet"],
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
            row("total time", plain("seconds", "span")),
            row("average time", element("span", { class: "mean" })),
            row("in flight", plain("in_flight", "count")),
            row("queued", plain("queued", "count")),
            row("retried", plain("retries", "count"))),
        element("h4", {}, "Results"),
        element("dl", { class: "tally inline endings" }));
}

function updateUpstream(block, service) {
    const { state, since_seconds: since, last_answer_seconds: answered, last_failure: failure } = service.health;
    const [sign, words] = HEALTH[state] ?? ["?", state];
    const health = block.querySelector(".health");
    health.dataset.state = state;
    const facts = [since === null ? words : `${words}, for ${span(since)}`];
    if (answered !== null) {
        facts.push(`last success ${answered < 2 ? "just now" : ago(answered)}`);
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
    tally(block.querySelector(".endings"), `upstream.${service.service}.requests`, counted(service.requests), "no calls yet");
}

/** The event of a condition begins with its cause, and belongs to it. */
const kindAndCause = ({ kind, what }) => (kind.startsWith("condition") ? `${kind} ${/^[\w-]*/.exec(what)[0]}` : kind);

/** One row for each kind of event, with what it was about, the latest first. */
function showEvents(events) {
    const byKind = new Map();
    for (const event of [...events].sort((one, other) => other.last_ms - one.last_ms)) {
        const kind = kindAndCause(event);
        byKind.set(kind, [...(byKind.get(kind) ?? []), event]);
    }
    keep(byId("events"), [...byKind.keys()], (kind) => eventItem(byKind.get(kind)[0]), (item, kind) => updateEvent(item, byKind.get(kind)));
    byId("no-events").hidden = events.length > 0;
}

function eventItem({ kind, is_bad: isBad }) {
    return element("li", { class: isBad ? "is-bad" : "" },
        element("time"),
        element("span", { class: "kind" }, (isBad ? "▲ " : "") + kind),
        element("div", { class: "what" }, element("span", { class: "latest" }), element("span", { class: "times" }),
            element("details", {}, element("summary"), element("ul"))));
}

/** What an event says, and where. */
function eventWords({ what, operation, project }) {
    const where = [operation, project && `project ${project}`].filter(Boolean).join(", ");
    return where === "" ? what : `${what} · ${where}`;
}

const total = (events) => events.reduce((sum, { count }) => sum + count, 0);

/** `events` are those of one kind. */
function updateEvent(item, events) {
    const [latest, ...others] = events;
    const time = item.querySelector("time");
    time.dateTime = new Date(latest.last_ms).toISOString();
    time.title = fullTime(latest.last_ms);
    say(time, clockTime(latest.last_ms));
    say(item.querySelector(".latest"), eventWords(latest));
    say(item.querySelector(".times"), latest.count > 1 ? ` · ${count(latest.count)} times, first ${clockTime(latest.first_ms)}` : "");
    const more = item.querySelector("details");
    more.hidden = others.length === 0;
    say(more.querySelector("summary"), `Others of this kind: ${count(total(others))}`);
    const words = others.map((event) => `${clockTime(event.last_ms)} ${eventWords(event)}${event.count > 1 ? ` (${count(event.count)} times)` : ""}`);
    keep(more.querySelector("ul"), words.map((word, index) => `${index} ${word}`), () => element("li"), (line, key) => say(line, words[Number(key.split(" ")[0])]));
}
