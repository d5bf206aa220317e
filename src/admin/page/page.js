// Asks the gateway every two seconds, and shows what it says, or that it doesn't say anything.

const EVERY = 2000;
/** An answer that takes longer is none. */
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
    /** When that was said. */
    at: 0,
    /** Why there is nothing newer. */
    trouble: null,
    /** Why the entries are not newer. */
    entriesTrouble: null,
    isPaused: false,
    needsToken: false,
    isAsking: false,
    limit: 100,
    timer: undefined,
    version: null,
    mode: null,
};

/** The token, which is kept as long as the tab is. A browser that keeps nothing has it until the page goes. */
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
            // It is kept in this page.
        }
    },
};

/** What the gateway has said that is no answer. */
class Refusal extends Error {
    constructor(status, text) {
        super(`it answers ${status}${text === "" ? "" : `: ${text}`}`);
        this.status = status;
    }
}

async function ask(path, signal) {
    const headers = token.value === null ? {} : { Authorization: `Bearer ${token.value}` };
    const response = await fetch(path, { headers, signal, cache: "no-store", redirect: "error", credentials: "omit" });
    if (!response.ok) {
        throw new Refusal(response.status, (await response.text()).trim().slice(0, 200));
    }
    return response;
}

const json = async (path, signal) => (await ask(path, signal)).json();

function inWords(error) {
    if (error instanceof Refusal) {
        return error.message;
    }
    if (error.name === "TimeoutError") {
        return `it has not answered within ${TIMEOUT / 1000} s`;
    }
    return error instanceof SyntaxError ? "what it answers is not what this page expects" : "it cannot be reached";
}

const isLive = () => !state.isPaused && !state.needsToken && !document.hidden;

/** Asks once, and again two seconds after that. One at a time. */
async function poll() {
    clearTimeout(state.timer);
    if (state.isAsking || !isLive()) {
        return;
    }
    state.isAsking = true;
    const begun = seconds();
    const asked = token.value;
    const signal = AbortSignal.timeout(TIMEOUT);
    const [status, listed] = await Promise.allSettled([json("status", signal), json(`cache/entries?limit=${state.limit}`, signal)]);
    state.isAsking = false;
    // What was asked before the token was changed or forgotten is nobody's answer any more.
    if (asked === token.value) {
        take(status, listed);
    }
    if (isLive()) {
        state.timer = setTimeout(poll, Math.max(0, EVERY - (seconds() - begun) * 1000));
    }
}

function take(status, listed) {
    const failed = status.reason;
    if (failed instanceof Refusal && failed.status === 401) {
        askForToken();
        return;
    }
    if (failed !== undefined) {
        fail(inWords(failed));
        return;
    }
    try {
        render(status.value);
        const entriesFailed = listed.reason;
        state.entriesTrouble = entriesFailed === undefined ? null : inWords(entriesFailed);
        if (entriesFailed === undefined) {
            entries.show(listed.value.entries, listed.value.total);
        } else {
            say(byId("entries-note"), `The entries are as of the answer before: ${state.entriesTrouble}.`);
        }
    } catch (error) {
        if (!(error instanceof TypeError || error instanceof RangeError)) {
            throw error;
        }
        fail("what it answers is not what this page expects");
    }
}

function fail(trouble) {
    if (state.trouble === null) {
        announce(`No answer from the gateway: ${trouble}.`);
    }
    state.trouble = trouble;
    past.gap(seconds());
    drawCharts();
    showLiveness();
}

function render(status) {
    const wasTrouble = state.trouble;
    const isRestart = past.add(status, seconds());
    const before = state.mode;
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
    showHelping(status);
    showResults(status.requests);
    tally(byId("misses"), "misses", counted(status.misses));
    tally(byId("unstored"), "unstored", counted(status.unstored));
    tally(byId("bypasses"), "bypasses", counted(status.bypasses));
    tally(byId("signatures"), "callers.signatures", counted(status.callers.signatures, "verified"));
    tally(byId("backoffs"), "backoffs", status.backoffs);
    showUpstream(status.upstream);
    showEvents(status.events);
    const { count: hits, sum: hitSeconds } = status.latency.hits;
    const { count: others, sum: otherSeconds } = status.latency.others;
    say(byId("mean-hits"), hits > 0 ? ` (${brief(hitSeconds / hits)} on average)` : "");
    say(byId("mean-others"), others > 0 ? ` (${brief(otherSeconds / others)} on average)` : "");
    byId("cache-bar").style.width = `${Math.min(100, (100 * status.cache.bytes) / status.cache.max_bytes)}%`;
    byId("banner-bypass").hidden = status.mode !== "bypass";
    say(byId("authorization"), token.value === null ? "" : "-H \"Authorization: Bearer $TOKEN\" ");
    showVersion(status.version);
    drawCharts();
    showLiveness();
    if (isRestart) {
        announce("The gateway was restarted. Its figures begin again.");
    } else if (wasTrouble !== null) {
        announce("The gateway answers again.");
    } else if (before !== null && before !== status.mode) {
        announce(`The mode is now ${status.mode}.`);
    }
}

function showVersion(version) {
    const banner = byId("banner-version");
    banner.hidden = version === state.version;
    say(banner, banner.hidden ? "" : `The gateway is now version ${version}, and this page is of ${state.version}: reload it.`);
}

/** The answer to the question, for who asks nothing else. */
function showHelping({ helping, mode, proxy, requests }) {
    const { answered, hits, upstream_calls: calls, calls_saved: saved, seconds_saved: spared } = helping;
    const passed = Object.values(requests.results).reduce((sum, value) => sum + value, 0) - answered;
    const verdict = byId("verdict");
    const isIdle = answered === 0;
    const isNew = isIdle && passed === 0;
    if (isNew && byId("invitation").hidden) {
        nameProxy(proxy);
    }
    byId("invitation").hidden = !isNew;
    say(byId("saved-why"), answered === 0 ? "Nothing was answered yet." : "No answer has come from upstream yet that would tell what a call takes.");
    say(byId("saved-exact"), spared === null ? "" : `${decimal(3).format(spared)} s, by what calls to upstream take on average`);
    document.title = `${isIdle ? "" : `${ratio(hits / answered)} from memory · `}workspace-gateway`;
    if (isIdle) {
        const words = passed === 0 ? ["Nothing asked yet.", "No client has sent a request since the start."]
            : ["Nothing to help with yet.", `No product list was asked for that could be answered from memory; ${count(passed)} ${passed === 1 ? "request" : "requests"} went through or were refused.`];
        sentence(verdict, ...words);
        return;
    }
    const lists = answered === 1 ? "the one product-list request" : `${count(answered)} product-list requests`;
    const memory = `Of ${lists} since the start, ${hits === 0 ? "none" : count(hits)} ${hits === 1 ? "was" : "were"} answered from memory.`;
    const called = `The service was called ${calls === 1 ? "once" : `${count(calls)} times`} instead of ${count(answered)}`;
    const waited = spared > 0 ? `, and clients waited ${span(spared).replaceAll(" ", "\u00a0")} less in all.` : ".";
    // Who waits for another's call is answered by upstream, and spares it a call all the same.
    const isMuch = Math.max(hits, saved) / answered >= 0.5;
    const opening = mode === "bypass" ? "Not now: it is switched off." : saved === 0 ? "Not yet." : isMuch ? "Yes." : "A little.";
    sentence(verdict, opening, saved === 0 ? memory : `${memory} ${called}${waited}`);
}

/** Where clients connect, in the command to try. All addresses are none that a client could be given. */
function nameProxy(proxy) {
    say(byId("proxy"), proxy.replace(/^(https?:\/\/)(0\.0\.0\.0|\[::\])(?=:)/, `$1${location.hostname}`));
}

function sentence(place, opening, rest) {
    if (place.textContent !== `${opening} ${rest}`) {
        place.replaceChildren(element("strong", {}, opening), ` ${rest}`);
    }
}

function drawCharts() {
    rates.draw(past);
    latencies.draw(past);
}

/** Whether what is shown is what is, said where it can be seen from anywhere on the page. */
function showLiveness() {
    const isOld = state.trouble !== null || state.isPaused;
    const age = state.status === null ? "" : `as of ${ago(seconds() - state.at)}`;
    const kind = state.needsToken ? "locked" : state.trouble !== null ? "stale" : state.isPaused ? "paused" : state.status === null ? "starting" : "live";
    document.body.dataset.state = kind;
    const words = { locked: "Token needed", stale: "No answer", paused: "Paused", starting: "Connecting", live: "Live" }[kind];
    say(byId("liveness"), isOld && age !== "" && !state.needsToken ? `${words} · ${age}` : words);
    byId("pause").hidden = state.needsToken;
    for (const title of document.querySelectorAll("#content h2")) {
        if (isOld && age !== "") {
            title.dataset.age = age;
        } else {
            delete title.dataset.age;
        }
    }
    const banner = byId("banner-stale");
    banner.hidden = kind !== "stale";
    if (kind === "stale") {
        const figures = state.status === null ? "There is nothing to show yet." : `All figures are from ${ago(seconds() - state.at)}.`;
        sentence(banner, "No answer from the gateway.", `${figures} Asked every 2 s; ${state.trouble}.`);
        if (state.status !== null) {
            document.title = "No answer · workspace-gateway";
        }
    }
}

function announce(text) {
    byId("announce").textContent = text;
}

function askForToken() {
    const wasWrong = token.value !== null;
    token.set(null);
    state.needsToken = true;
    state.status = null;
    state.trouble = null;
    past.clear();
    byId("content").hidden = byId("facts").hidden = byId("forget").hidden = byId("banner-bypass").hidden = true;
    byId("token-form").hidden = false;
    say(byId("token-wrong"), wasWrong ? "That token isn’t right: the gateway answers 401." : "");
    byId("token").setAttribute("aria-invalid", String(wasWrong));
    byId("token").value = "";
    byId("token").focus();
    document.title = "Token needed · workspace-gateway";
    showLiveness();
}

byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = byId("token").value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) {
        say(byId("token-wrong"), given === "" ? "Enter the token." : "A token has no spaces in it, and no letters beyond ASCII.");
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
    announce("The token is forgotten.");
});

byId("pause").addEventListener("click", () => {
    state.isPaused = !state.isPaused;
    say(byId("pause"), state.isPaused ? "Resume" : "Pause");
    announce(state.isPaused ? "Backoff." : "Live again.");
    resumeOrRest();
});

document.addEventListener("visibilitychange", resumeOrRest);

function resumeOrRest() {
    clearTimeout(state.timer);
    showLiveness();
    if (isLive()) {
        past.gap(seconds());
        poll();
    }
}

byId("more-entries").addEventListener("click", () => {
    state.limit = 1000;
    poll();
});

byId("config").addEventListener("toggle", async () => {
    if (!byId("config").open) {
        return;
    }
    say(byId("config-note"), "Asking …");
    try {
        const text = await (await ask("config", AbortSignal.timeout(TIMEOUT))).text();
        byId("config-text").textContent = text;
        say(byId("config-note"), `As of ${clockTime(Date.now())}. Opened again, it is asked for again.`);
    } catch (error) {
        say(byId("config-note"), `The gateway doesn’t tell: ${inWords(error)}.`);
    }
});

document.querySelectorAll(".origin").forEach((place) => say(place, location.origin));
token.load();
// What was said last gets older, though nobody says anything.
setInterval(() => {
    if (!document.hidden && (state.trouble !== null || state.isPaused)) {
        showLiveness();
    }
}, 1000);
showLiveness();
poll();
