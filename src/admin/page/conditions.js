// The banner: what is wrong now, as the gateway says it, or that there is no response. The page decides only the latter.

/** The conditions of a status, or the one that only the page can know. */
function conditionsNow({ status, at, trouble }) {
    if (trouble === null) {
        return status?.conditions;
    }
    const figures = status === null ? "There is nothing to show yet" : `All figures are from ${ago(seconds() - at)}`;
    const what = `no response from the gateway: ${trouble}`;
    return [{ cause: "no-data", severity: "critical", what, advice: `${figures}. The page tries again every 2 s`, since_seconds: null, until_seconds: null }];
}

/** Longer texts are not shown in bold as a whole. */
const LONG_CONDITION = 120;

/** A severity that a newer gateway may have is shown as a warning. */
const known = (severity) => (severity === "critical" ? "critical" : "warning");

/** Shows them, and returns the worst severity: `good`, `warning` or `critical`, or undefined if nothing is known. */
function showConditions(page) {
    const conditions = conditionsNow(page);
    const banner = byId("banner");
    banner.hidden = conditions === undefined;
    const worst = conditions === undefined ? undefined : conditions.length === 0 ? "good" : known(conditions[0].severity);
    banner.className = `banner ${{ good: "good", warning: "warn", critical: "bad" }[worst]}`;
    byId("no-conditions").hidden = worst !== "good";
    const times = new Map();
    const byKey = new Map((conditions ?? []).map((condition) => {
        const name = `${condition.cause} ${condition.service}`;
        times.set(name, (times.get(name) ?? 0) + 1);
        return [`${name} ${times.get(name)}`, condition];
    }));
    const passed = page.trouble === null && page.status !== null ? seconds() - page.at : 0;
    keep(byId("conditions"), [...byKey.keys()], (key) => conditionItem(byKey.get(key)), (item, key) => updateCondition(item, byKey.get(key), passed, page.status?.time_ms));
    return worst;
}

function conditionItem({ cause, severity }) {
    const item = element("li", {},
        element("span", { class: "sign", "aria-hidden": "true" }, severity === "critical" ? "▲" : "△"),
        element("strong"), element("span", { class: "rest" }), " ", element("span", { class: "tag" }, cause),
        element("span", { class: "note" }, element("span", { class: "times" }), element("span", { class: "advice" })));
    if (cause === "bypassed") {
        const authorization = token.value === null ? "" : "-H \"Authorization: Bearer $TOKEN\" ";
        add(item.lastElementChild, " ", element("code", {}, `curl -X PUT -d cache ${authorization}${location.origin}/mode`));
    }
    return item;
}

/** `passed`: how old the condition is, in seconds. */
function updateCondition(item, { severity, what, advice, since_seconds: since, until_seconds: until }, passed, time) {
    item.className = known(severity);
    const sentence = `${what.charAt(0).toUpperCase()}${what.slice(1)}.`;
    const colon = sentence.length > LONG_CONDITION ? sentence.indexOf(": ") + 1 : 0;
    say(item.querySelector("strong"), colon > 0 ? sentence.slice(0, colon) : sentence);
    say(item.querySelector(".rest"), colon > 0 ? sentence.slice(colon) : "");
    const times = [];
    if (since !== null) {
        times.push(`Since ${clockTime(time - since * 1000)} (${span(Math.floor(since + passed))}). `);
    }
    if (until !== null) {
        times.push(`Until ${clockTime(time + until * 1000)} (in ${span(Math.max(0, Math.ceil(until - passed)))}). `);
    }
    say(item.querySelector(".times"), times.join(""));
    say(item.querySelector(".advice"), `${advice}.`);
}
