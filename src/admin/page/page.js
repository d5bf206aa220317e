// Requests the status every two seconds, and shows it, or shows that there is no response.

const INTERVAL = 2000;
/** A longer request counts as failed. */
const TIMEOUT = 10_000;
const TOKEN = "workspace-gateway-admin-token";

const past = new Past();
const rates = new Chart(byId("rate-chart"), RATES);
const latencies = new Chart(byId("latency-chart"), LATENCIES);
rates.peers.push(latencies);
latencies.peers.push(rates);
const entries = new Entries();

const seconds = () => performance.now() / 1000;

const state = {
    status: null,
    /** When it was received. */
    at: 0,
    /** Why there is no newer status. */
    trouble: null,
    /** Why there are no newer entries. */
    entriesTrouble: null,
    isPaused: false,
    needsToken: false,
    isLoading: false,
    limit: 100,
    /** The seconds that the charts show, if the user has chosen. */
    window: null,
    timer: undefined,
    version: null,
    mode: null,
};

/** The token. It is kept in the tab, or only in the page if the browser has no storage. */
const token = {
    value: null,
    load() {
        try {
            this.value = sessionStorage.getItem(TOKEN);
        } catch {
            this.value = null;
        }
    },
    set(value) {
        this.value = value;
        try {
            if (value === null) {
                sessionStorage.removeItem(TOKEN);
            } else {
                sessionStorage.setItem(TOKEN, value);
            }
        } catch {
            // Then it is only in this page.
        }
    },
};

/** A response with an error status. */
class Refusal extends Error {
    constructor(status, text) {
        super(`the gateway answers ${status}${text === "" ? "" : `: ${text}`}`);
        this.status = status;
    }
}

/** A GET, or a POST of a form. */
async function request(path, signal, form) {
    const headers = token.value === null ? {} : { Authorization: `Bearer ${token.value}` };
    const method = form === undefined ? {} : { method: "POST", body: form };
    const response = await fetch(path, { headers, signal, cache: "no-store", redirect: "error", credentials: "omit", ...method });
    if (!response.ok) {
        throw new Refusal(response.status, (await response.text()).trim().slice(0, 600));
    }
    return response;
}

const json = async (path, signal) => (await request(path, signal)).json();

function describe(error) {
    if (error instanceof Refusal) {
        return error.message;
    }
    if (error.name === "TimeoutError") {
        return `the gateway has not answered within ${TIMEOUT / 1000} s`;
    }
    return error instanceof SyntaxError ? "the response is not what this page expects" : "the gateway cannot be reached";
}

const isLive = () => !state.isPaused && !state.needsToken && !document.hidden;

/** Requests the status now, and again two seconds later. One request at a time. */
async function poll() {
    clearTimeout(state.timer);
    if (state.isLoading || !isLive()) {
        return;
    }
    state.isLoading = true;
    const begun = seconds();
    const sentToken = token.value;
    const signal = AbortSignal.timeout(TIMEOUT);
    const wanted = past.request(seconds());
    const [status, listed, history] = await Promise.allSettled([
        json("status", signal), json(`cache/entries?limit=${state.limit}`, signal), wanted === null ? null : json(wanted, signal),
    ]);
    state.isLoading = false;
    // A response to a request from before the token was changed or forgotten is not shown.
    if (sentToken === token.value) {
        take(status, listed, history);
    }
    if (isLive()) {
        state.timer = setTimeout(poll, Math.max(0, INTERVAL - (seconds() - begun) * 1000));
    }
}

function take(status, listed, history) {
    const failed = status.reason;
    if (failed instanceof Refusal && failed.status === 401) {
        askForToken();
        return;
    }
    if (failed !== undefined) {
        fail(describe(failed));
        return;
    }
    try {
        // Without it the charts have a gap until the next one.
        if (history.value) {
            past.add(history.value, seconds());
        }
        render(status.value);
        const entriesFailed = listed.reason;
        state.entriesTrouble = entriesFailed === undefined ? null : describe(entriesFailed);
        if (entriesFailed === undefined) {
            entries.show(listed.value.entries, listed.value.total);
        } else {
            say(byId("entries-note"), `These entries are not up to date: ${state.entriesTrouble}.`);
        }
    } catch (error) {
        if (!(error instanceof TypeError || error instanceof RangeError)) {
            throw error;
        }
        fail("the response is not what this page expects");
    }
}

function fail(trouble) {
    if (state.trouble === null) {
        announce(`No response from the gateway: ${trouble}.`);
    }
    state.trouble = trouble;
    drawCharts();
    showLiveness();
}

function render(status) {
    const wasTrouble = state.trouble;
    const isRestart = state.status !== null && status.uptime_seconds < state.status.uptime_seconds;
    const before = state.mode;
    const [was, is] = [state.status?.conditions?.[0]?.cause, status.conditions?.[0]?.cause];
    const isFirst = state.status === null;
    Object.assign(state, { status, at: seconds(), trouble: null, mode: status.mode, version: state.version ?? status.version });

    byId("token-form").hidden = true;
    byId("content").hidden = byId("facts").hidden = false;
    byId("forget").hidden = token.value === null;
    for (const place of document.querySelectorAll("[data-figure][data-as]:not([data-at])")) {
        show(place, at(status, place.dataset.figure));
    }
    for (const reason of document.querySelectorAll("[data-why]")) {
        reason.hidden = at(status, reason.dataset.why) !== null;
    }
    showSavings(status);
    showResults(status.requests);
    tally(byId("unstored"), "unstored", counted(status.unstored));
    tally(byId("signatures"), "callers.signatures", counted(status.callers.signatures, "verified"));
    tally(byId("backoffs"), "backoffs", status.backoffs);
    offerFilters(status.requests);
    showCallers(status.callers);
    showStaleness(status.staleness);
    showQuotas(status.quotas, status.quota_policies);
    showFleet(status.fleet);
    showUpstream(status.upstream);
    showEvents(status.events);
    const { count: hits, sum: hitSeconds } = status.latency.hits;
    const { count: others, sum: otherSeconds } = status.latency.others;
    say(byId("mean-hits"), hits > 0 ? `, ${brief(hitSeconds / hits)} on average` : "");
    say(byId("mean-others"), others > 0 ? `, ${brief(otherSeconds / others)} on average` : "");
    byId("cache-bar").style.width = `${Math.min(100, (100 * status.cache.bytes) / status.cache.max_bytes)}%`;
    showVersion(status.version);
    drawCharts();
    showLiveness();
    if (isRestart) {
        announce("The gateway was restarted. Its figures start from zero.");
    } else if (wasTrouble !== null) {
        announce("The gateway answers again.");
    } else if (before !== null && before !== status.mode) {
        announce(`The mode is now ${status.mode}.`);
    } else if (was !== is && !isFirst) {
        announce(is === undefined ? "No problem is known any more." : `${status.conditions[0].what}.`);
    }
}

function showVersion(version) {
    const banner = byId("banner-version");
    banner.hidden = version === state.version;
    say(banner, banner.hidden ? "" : `The gateway now has version ${version}, and this page has ${state.version}. Reload the page.`);
}

/** The summary at the top: whether the gateway helps. */
function showSavings({ savings, mode, proxy, requests, conditions }) {
    const { answered, hits, coalesced = 0, upstream_calls: calls, calls_saved: saved, seconds_saved: spared } = savings;
    const passed = Object.values(requests.results).reduce((sum, value) => sum + value, 0) - answered;
    const verdict = byId("verdict");
    const isIdle = answered === 0;
    const isNew = isIdle && passed === 0;
    if (isNew && byId("invitation").hidden) {
        nameProxy(proxy);
    }
    byId("invitation").hidden = !isNew;
    say(byId("saved-why"), answered === 0 ? "Nothing was answered yet." : "There was no upstream call yet whose duration is known.");
    byId("saved-note").hidden = spared === null;
    if (isIdle) {
        const words = passed === 0 ? ["No requests yet.", "No client has sent a request since the start."]
            : ["Nothing to cache yet.",
                `There was no product-list request that could be answered from memory. ${count(passed)} other ${passed === 1 ? "request was" : "requests were"} relayed or refused.`];
        sentence(verdict, ...words);
        return;
    }
    const lists = answered === 1 ? "the one product-list request" : `${count(answered)} product-list requests`;
    const shared = coalesced > 0 ? `, and ${count(coalesced)} by the call of another` : "";
    const memory = `Of ${lists} since the start, ${hits === 0 ? "none" : count(hits)} ${hits === 1 ? "was" : "were"} answered from memory${shared}.`;
    const called = `Upstream was called ${calls === 1 ? "once" : `${count(calls)} times`} instead of ${count(answered)}`;
    const waited = spared > 0 ? `, and clients waited ${span(spared).replaceAll(" ", "\u00a0")} less in all.` : ".";
    // A request that waits for another request's call is not answered from memory, but saves a call.
    const isMuch = Math.max(hits, saved) / answered >= 0.5;
    const opening = mode === "bypass" ? "Not now: the cache is switched off." : saved === 0 ? "Not yet." : isMuch ? (conditions?.[0]?.severity === "critical" ? "Since the start, yes." : "Yes.") : "A little.";
    sentence(verdict, opening, saved === 0 ? memory : `${memory} ${called}${waited}`);
}

/** Where clients connect, in the command to try. A client cannot connect to an unspecified address. */
function nameProxy(proxy) {
    say(byId("proxy"), proxy.replace(/^(https?:\/\/)(0\.0\.0\.0|\[::\])(?=:)/, `$1${location.hostname}`));
}

function sentence(place, opening, rest) {
    if (place.textContent !== `${opening} ${rest}`) {
        place.replaceChildren(element("strong", {}, opening), ` ${rest}`);
    }
}

/** The time that the charts show: what the user has chosen, or as much as is known. */
function drawCharts() {
    past.moveTo(seconds());
    const window = state.window ?? (WINDOWS.find(([window]) => window >= (past.end ?? 0)) ?? WINDOWS.at(-1))[0];
    for (const button of document.querySelectorAll("#windows button")) {
        button.setAttribute("aria-pressed", String(Number(button.value) === window));
    }
    rates.draw(past, window);
    latencies.draw(past, window);
}

/** Whether the page is up to date. This is visible from everywhere on the page. */
function showLiveness() {
    const isOld = state.trouble !== null || state.isPaused;
    const age = state.status === null ? "" : `as of ${ago(seconds() - state.at)}`;
    const kind = state.needsToken ? "locked" : state.trouble !== null ? "stale" : state.isPaused ? "paused" : state.status === null ? "starting" : "live";
    document.body.dataset.state = kind;
    const words = { locked: "Token needed", stale: "No response", paused: "Paused", starting: "Connecting", live: "Live" }[kind];
    say(byId("liveness"), isOld && age !== "" && !state.needsToken ? `${words} · ${age}` : words);
    byId("pause").hidden = state.needsToken;
    for (const title of document.querySelectorAll("#content h2")) {
        if (isOld && age !== "") {
            title.dataset.age = age;
        } else {
            delete title.dataset.age;
        }
    }
    const worst = showConditions(state);
    if (worst === undefined) {
        delete document.body.dataset.health;
    } else {
        document.body.dataset.health = worst;
    }
    if (kind === "live" && worst !== undefined) {
        say(byId("liveness"), { good: "Live", warning: "Live, with a warning", critical: "Live, with a problem" }[worst]);
    }
    showTitle(worst);
}

/** The title of the tab: the worst condition, if there is a critical one. */
function showTitle(worst) {
    const hits = state.status?.savings;
    const isIdle = !hits || hits.answered === 0;
    const cause = worst === "critical" ? conditionsNow(state)[0].cause : null;
    const words = state.needsToken ? "Token needed · " : cause !== null ? `▲ ${cause} · ` : isIdle ? "" : `${ratio(hits.hits / hits.answered)} from memory · `;
    document.title = `${words}workspace-gateway`;
}

function announce(text) {
    byId("announce").textContent = text;
}

function askForToken() {
    const wasWrong = token.value !== null;
    token.set(null);
    state.needsToken = true;
    clearTail();
    clearExplained();
    state.status = null;
    state.trouble = null;
    past.clear();
    byId("content").hidden = byId("facts").hidden = byId("forget").hidden = true;
    byId("token-form").hidden = false;
    say(byId("token-wrong"), wasWrong ? "This token is wrong: the gateway answers 401." : "");
    byId("token").setAttribute("aria-invalid", String(wasWrong));
    byId("token").value = "";
    byId("token").focus();
    showLiveness();
}

byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = byId("token").value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) {
        say(byId("token-wrong"), given === "" ? "Enter the token." : "A token has only ASCII characters and no spaces.");
        byId("token").setAttribute("aria-invalid", "true");
        byId("token").focus();
        return;
    }
    token.set(given);
    state.needsToken = false;
    poll();
});

byId("forget").addEventListener("click", () => {
    token.set(null);
    entries.show([], 0);
    byId("config-text").textContent = "";
    byId("config").open = false;
    askForToken();
    announce("The token was removed.");
});

byId("pause").addEventListener("click", () => {
    state.isPaused = !state.isPaused;
    say(byId("pause"), state.isPaused ? "Resume" : "Pause");
    announce(state.isPaused ? "Paused." : "Live again.");
    resumeOrStop();
});

document.addEventListener("visibilitychange", resumeOrStop);

function resumeOrStop() {
    clearTimeout(state.timer);
    showLiveness();
    if (isLive()) {
        poll();
    }
}

byId("more-entries").addEventListener("click", () => {
    state.limit = 1000;
    poll();
});

for (const button of document.querySelectorAll("#windows button")) {
    button.addEventListener("click", () => {
        state.window = Number(button.value);
        drawCharts();
    });
}

byId("config").addEventListener("toggle", async () => {
    if (!byId("config").open) {
        return;
    }
    say(byId("config-note"), "Loading …");
    try {
        const text = await (await request("config", AbortSignal.timeout(TIMEOUT))).text();
        byId("config-text").textContent = text;
        say(byId("config-note"), `As of ${clockTime(Date.now())}. Close and open this to load it again.`);
    } catch (error) {
        say(byId("config-note"), `The configuration cannot be loaded: ${describe(error)}.`);
    }
});

document.querySelectorAll(".origin").forEach((place) => say(place, location.origin));
token.load();
// The age of the last status grows without a new one.
setInterval(() => {
    if (!document.hidden && (state.trouble !== null || state.isPaused)) {
        drawCharts();
        showLiveness();
    }
}, 1000);
showLiveness();
poll();
