// The limits of upstream, and what they hold back. Rows are updated in place.

/** What a limit counts together. */
const COUNTED = { api: "API", user: "each user", app: "each application", ip: "source address" };

/** The columns of the limits, and the figures in each. */
const LIMITS = [
    { name: "Calls", words: (place) => [place("used", "count"), " in the last ", place("window_seconds", "span"), "; allowed: ", place("calls", "count")] },
    { name: "Left", words: (place) => [place("remaining", "count")] },
    { name: "Next call", words: (place) => [place("free_in_seconds", "wait")] },
];

const POLICIES = [
    { name: "Waiting now", words: (place) => [place("waiting", "count")] },
    { name: "Have waited", words: (place) => [place("waits", "count")] },
    { name: "Total wait", words: (place) => [place("wait_seconds", "span"), element("span", { class: "note range mean" })] },
    { name: "429 by upstream", words: (place) => [place("refused_by_upstream", "count")] },
    { name: "429 by the gateway", words: (place) => [place("refused_by_gateway", "count")] },
];

/** The limits that are known now, and what the limits of each kind have done since the start. */
function showQuotas(limits, policies) {
    byId("quotas").hidden = limits === undefined || policies === undefined;
    if (byId("quotas").hidden) {
        return;
    }
    const known = limits.map((limit) => {
        const place = [limit.service, limit.policy, limit.operation].filter((part) => part !== null).join(".");
        return [place, `quotas.${place}`, limit];
    });
    fillQuotas(byId("quota-limits"), ["Limit by", "Service", "Source", "Holds back"], LIMITS, numbered(known), limitWords);
    byId("no-limits").hidden = limits.length > 0;
    byId("quota-callers").hidden = limits.every(({ policy }) => policy === "api" || policy === "ip");

    const met = Object.entries(policies).filter(([, figures]) => Object.values(figures).some((value) => value > 0));
    const rows = numbered(met.map(([policy, figures]) => [policy, `quota_policies.${policy}`, { policy, ...figures }]));
    fillQuotas(byId("quota-policies"), ["Limits by"], POLICIES, rows, ({ policy }) => [COUNTED[policy] ?? policy]);
}

/** The words of a limit, in the order of the columns. */
function limitWords({ service, policy, operation, is_configured: isConfigured, binds_all: bindsAll }) {
    const counted = COUNTED[policy] ?? policy;
    const isOfCallers = policy === "user" || policy === "app";
    const whom = isOfCallers ? (isConfigured ? "each caller alone" : "the caller that met it") : bindsAll ? "all callers" : "the caller that met it, and those without a proof";
    return [operation === null ? counted : `${counted} ${operation}`, service, isConfigured ? "configured" : "learnt", whom];
}

function fillQuotas(table, names, columns, byKey, words) {
    const header = table.tHead.rows[0];
    if (header.cells.length === 0) {
        header.append(...names.map((name) => element("th", { scope: "col", role: "columnheader" }, name)),
            ...columns.map(({ name }) => element("th", { scope: "col", role: "columnheader", class: "num" }, name)));
    }
    keep(table.tBodies[0], [...byKey.keys()], (key) => quotaRow(names, columns, byKey.get(key)), (row, key) => {
        const { figures } = byKey.get(key);
        words(figures).forEach((text, index) => say(row.cells[index], text));
        for (const place of row.querySelectorAll("[data-at]")) {
            show(place, figures[place.dataset.at]);
        }
        for (const mean of row.querySelectorAll(".mean")) {
            mean.hidden = figures.waits === 0;
            say(mean, figures.waits > 0 ? `${brief(figures.wait_seconds / figures.waits)} on average` : "");
        }
    });
    table.hidden = byKey.size === 0;
}

function quotaRow(names, columns, { prefix }) {
    const place = (key, as) => element("span", { "data-figure": `${prefix}.${key}`, "data-as": as, "data-at": key });
    const words = names.map((name, index) => (index === 0 ? element("th", { role: "rowheader", scope: "row" })
        : element("td", { role: "cell", class: "words", "data-label": name })));
    const cells = columns.map(({ name, words }) => element("td", { role: "cell", class: "num", "data-label": name }, ...words(place)));
    return element("tr", { role: "row" }, ...words, ...cells);
}
