// The status page in a real browser, with a server that imitates a gateway in various states.

import assert from "node:assert/strict";
import { after, before, beforeEach, afterEach, test } from "node:test";

import { HOSTILE, RESULTS, SEVERAL, busy, bypass, entries, fresh, history, hostile, limit, measured, tailed, unknown } from "./fixtures/status.mjs";
import { Gateway, PHONE, Tab, launch } from "./support.mjs";

let browser, gateway, tab;
before(async () => void (browser = await launch()));
after(() => browser.close());
beforeEach(async () => {
    gateway = await Gateway.start();
    tab = undefined;
});
afterEach(async () => {
    try {
        await tab?.close();
    } finally {
        await gateway.stop();
    }
});

async function open(options) {
    tab = await Tab.open(browser, gateway, options);
    return tab;
}

/** A gateway under load. Each status is two seconds later than the one before. */
function works(from = 4000, more = {}, changes = {}) {
    let uptime = from;
    gateway.status = () => ({ ...busy((uptime += 2), more), ...changes });
}

const isHidden = (selector) => tab.page.locator(selector).isHidden();

/** The text of a chart for the selected moment. */
const readout = (chart) => tab.page.locator(`#${chart}-chart .plot`).getAttribute("aria-valuetext");

test("after a start the page says that there were no requests, and how to send one", async () => {
    await open();
    await tab.state("live");
    assert.equal(await tab.text("#verdict"), "No requests yet. No client has sent a request since the start.");
    assert.match(await tab.text("#invitation pre"), /^curl -i -H "X-Auth-Token: \$TOKEN" "http:\/\/127\.0\.0\.1:(18080|8080)\/v2\/\$PROJECT\/products"$/);
    // The address is the one that clients connect to.
    await tab.until(() => document.getElementById("proxy").textContent === "http://127.0.0.1:18080");
    const { text } = (await tab.figures()).find(({ name }) => name === "savings.hit_ratio");
    assert.equal(text, "not known yet");
    assert.equal(await tab.text("[data-why='savings.hit_ratio']"), "Nothing was answered yet.");
    assert.equal(await tab.text("#entries-note"), "0 entries. Successful responses of upstream appear here.");
    assert.match(await tab.text("#no-events"), /^No events since the start/);
    assert.equal(await readout("rate"), "The first values appear ten seconds after the start of the gateway");
    // Relayed requests are requests, too.
    gateway.status = () => ({ ...fresh(9), requests: { ...fresh().requests, results: { ...fresh().requests.results, "pass-through": 7 } } });
    await tab.pass(2);
    assert.match(await tab.text("#verdict"), /^Nothing to cache yet\..* 7 other requests were relayed/);
    assert.ok(await isHidden("#invitation"));
});

test("every figure on the page is that of the status, with sensible digits", async () => {
    gateway.status = () => busy();
    gateway.entries = entries(40);
    gateway.total = 1234;
    await open();
    await tab.state("live");
    const status = busy();
    const { savings } = status;
    const grouped = (value) => value.toLocaleString("en");
    const verdict = await tab.text("#verdict");
    for (const part of ["Yes.", "207 k product-list requests", "196 k were answered from memory", `and ${grouped(savings.coalesced)} by the call of another`, grouped(savings.upstream_calls)]) {
        assert.ok(verdict.includes(part), `${part}: ${verdict}`);
    }
    // Every figure is there, and has the value at its path in the status.
    const figures = await tab.figures();
    const flat = new Map(leaves(status));
    for (const { name, value, text, title } of figures.filter(({ name }) => name !== "entries.total")) {
        assert.ok(flat.has(name) || value === 0, name);
        assert.deepEqual(value, flat.has(name) ? flat.get(name) : 0, name);
        if (Number.isInteger(value) && !/seconds|sum|ratio|lower|upper/.test(name)) {
            // What is rounded to three digits has all of them in its title.
            assert.equal(value < 10_000 && !name.includes("bytes") ? text : title, grouped(value), name);
            assert.ok(text.match(/\d/g).length <= 4, `${name}: ${text}`);
        }
    }
    const names = new Set(figures.map(({ name }) => name));
    const shown = [...flat].filter(([name, value]) => value !== 0 || RESULTS.some((result) => name === `requests.results.${result}`));
    assert.deepEqual(shown.map(([name]) => name).filter((name) => !names.has(name)), ["time_ms", "proxy"]);
    assert.equal(names.size, figures.length);
});

test("the verdict depends on the hits and on the calls saved", async () => {
    let uptime = 100;
    const helps = (hits, calls) => {
        const savings = { answered: 100, hits, hit_ratio: hits / 100, upstream_calls: calls, calls_saved: Math.max(0, 100 - calls), seconds_saved: hits * 0.2 };
        gateway.status = () => ({ ...busy((uptime += 2)), savings });
    };
    helps(97, 3);
    await open();
    await tab.state("live");
    assert.match(await tab.text("#verdict"), /^Yes\. Of 100 product-list requests since the start, 97 were .* called 3 times instead of 100, and clients waited 19\ss less/);
    for (const [hits, calls, opening] of [[40, 5, "Yes."], [10, 90, "A little."], [1, 99, "A little."], [0, 110, "Not yet."]]) {
        helps(hits, calls);
        await tab.pass(2);
        assert.ok((await tab.text("#verdict")).startsWith(`${opening} Of 100`), opening);
    }
});

/** The names and values of the figures in a status, as the page names them. */
function* leaves(value, path = []) {
    for (const [name, inner] of Object.entries(value)) {
        const here = [...path, name];
        // The page shows misses and bypasses by operation. It counts callers in words.
        if (["events", "conditions", "callers.by_id", "callers.remembered", "misses", "bypasses", "latency.bounds", "latency.hits.buckets", "latency.others.buckets"].includes(here.join("."))) {
            continue;
        }
        if (here.join(".") === "requests.operations") {
            for (const { operation, ...figures } of inner) {
                yield* leaves(figures, [...here, operation]);
            }
        } else if (here.join(".") === "upstream") {
            for (const { service, url, health, ...rest } of inner) {
                yield* leaves(rest, ["upstream", service]);
            }
        } else if (here.join(".") === "staleness") {
            for (const { operation, projects, ...rest } of inner) {
                yield* leaves(rest, [...here, operation]);
                // The figures of a single project are those of the operation.
                for (const { project, ...figures } of projects.length > 1 ? projects : []) {
                    yield* leaves(figures, [...here, operation, "projects", project]);
                }
            }
        } else if (here.join(".") === "quotas") {
            for (const { service, policy, operation, is_configured, binds_all, ...figures } of inner) {
                yield* leaves(figures, [...here, ...[service, policy, operation].filter((part) => part !== null)]);
            }
        } else if (inner !== null && typeof inner === "object") {
            yield* leaves(inner, here);
        } else {
            yield [here.join("."), inner];
        }
    }
}

/** The texts of the cells of each row. */
const cells = (table) => tab.page.locator(`${table} tbody tr`).evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText.replaceAll("\n", " "))));

test("callers that are refused come first, with the id of the log and their client", async () => {
    works();
    await open();
    await tab.state("live");
    assert.deepEqual(await cells("#by-id-rows"), [
        ["4be3cf01d2a79c55 never accepted nightly-report/2.1", "412", "0", "412", "3 s ago", "3 s ago"],
        ["0f1d2c3b4a596877 access key AK7QXEXAMPLEWS01 · terraform-provider-huaweicloud/1.64", "5,120", "4,977", "2", "2 min 20 s ago", "21 s ago"],
        ["9a8b7c6d5e4f3021 python-requests/2.32.3", "201 k", "191 k", "0", "–", "just now"],
        ["77aa00bb11cc22dd", "7", "5", "1", "1 h 8 min ago", "1 h 6 min ago"],
    ]);
    assert.deepEqual(await tab.page.locator("#by-id-rows .is-bad").count(), 2);
    assert.equal(await tab.text("#by-id-note"), "4 of 212 callers. Refused in the last five minutes first, then those seen last.");
    // A gateway of an older version does not list them.
    works(4800, {}, { callers: { ...busy().callers, by_id: undefined, remembered: undefined } });
    await tab.pass(2);
    assert.ok(await isHidden("#by-id"));
});

/** Waits until the tail has so many rows. */
const untilRows = (wanted) => tab.until((wanted) => document.querySelectorAll("#tail-rows tbody tr").length === wanted, wanted);

test("requests are shown as they end, with the filters that are given", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.page.locator("#tail-result").fill(" hit,miss ");
    await tab.page.locator("#tail-slow").fill("10ms");
    await tab.page.locator("#tail-start").click();
    await tab.until(() => document.getElementById("tail-note").textContent === "Live.");
    assert.deepEqual(tab.requests.filter((path) => path.startsWith("/tail")), ["/tail?result=hit%2Cmiss&slow=10ms"]);
    const [stream] = gateway.tails;
    // In pieces, as the network may cut them.
    const denied = tailed({ result: "denied", status: 403, miss: "no-grant", detail: "no-grant", failure: undefined, caller: undefined, user_agent: HOSTILE[0], path: `/${HOSTILE[1]}` });
    stream.write(tailed() + denied.slice(0, 99));
    await untilRows(1);
    stream.write(denied.slice(99));
    await untilRows(2);
    const scheme = (time) => /^\d\d:\d\d:\d\d$/.test(time);
    const [latest, first] = await cells("#tail-rows");
    assert.ok(scheme(latest[0]) && scheme(first[0]), latest[0]);
    assert.deepEqual(latest.slice(1), [`GET /${HOSTILE[1]} ListProducts`, "denied no-grant", "▲ 403", "42 µs", `none 10.0.0.7 · ${HOSTILE[0]}`]);
    assert.deepEqual(first.slice(1), ["GET /v2/0123456789abcdef0123456789abcdef/products ListProducts", "hit", "200", "42 µs", "9a8b7c6d5e4f3021 10.0.0.7 · python-requests/2.32.3"]);
    assert.equal(await tab.page.evaluate(() => window.hurt), undefined);

    // While the pointer is over the rows they stay, and at most 200 are kept.
    const place = () => tab.page.evaluate(() => ["tail-scroll", "by-id"].map((id) => document.getElementById(id).getBoundingClientRect().top + scrollY));
    const before = await place();
    await tab.page.locator("#tail-scroll").hover();
    stream.write(Array.from({ length: 300 }, (_, index) => tailed({ path: `/${index}` })).join(""));
    await tab.until(() => document.getElementById("tail-note").textContent === "Held: at least 200 new.");
    assert.equal((await cells("#tail-rows")).length, 2);
    await tab.page.mouse.move(0, 0);
    await untilRows(200);
    assert.match((await cells("#tail-rows"))[0][1], /^GET \/299 /);
    assert.deepEqual(await place(), before);

    await tab.page.locator("#tail-hold").click();
    stream.write(tailed({ path: "/later" }) + "event: dropped\ndata: {\"dropped\":1234}\n\n");
    await tab.until(() => document.getElementById("tail-note").textContent === "Held: 1 new. 1,234 were dropped, because this page was too slow.");
    await tab.page.locator("#tail-hold").click();
    assert.match((await cells("#tail-rows"))[0][1], /^GET \/later /);

    await tab.page.locator("#tail-start").click();
    assert.equal(await tab.text("#tail-note"), "Stopped.");
    await tab.until(() => document.getElementById("tail-start").textContent === "Start");
    assert.equal((await cells("#tail-rows")).length, 200);
});

test("the page says why requests are not shown any more", async () => {
    gateway.token = "s3cret-of-the-operator";
    await open();
    await tab.state("locked");
    await tab.page.locator("#token").fill("s3cret-of-the-operator");
    await tab.page.keyboard.press("Enter");
    await tab.state("live");
    const start = tab.page.locator("#tail-start");
    const note = (text) => tab.until((text) => document.getElementById("tail-note").textContent === text, text);
    await tab.page.locator("#tail-result").fill("wrong");
    await start.click();
    await note("Stopped: the gateway answers 400: result = \"wrong\" is not allowed: expected some of hit, miss.");
    await tab.page.locator("#tail-result").fill("");
    await start.click();
    await note("Live.");
    gateway.tails[0].end(`${tailed()}event: end\ndata: {"why":"an hour is over"}\n\n`);
    await note("Stopped: an hour is over.");
    await untilRows(1);
    await start.click();
    await note("Live.");
    gateway.tails[1].destroy();
    await tab.until(() => document.getElementById("tail-note").textContent.startsWith("Stopped: the gateway "));
    await start.click();
    await note("Live.");
    // Whoever takes the token away takes the requests away, too.
    await tab.page.locator("#forget").click();
    await untilRows(0);
});

test("explain gives one verdict, and its credentials stay nowhere", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.page.locator("#explain-url").fill("/v2/p/products?limit=1");
    await tab.page.locator("#explain-token").fill("gAAAA-the-token");
    await tab.page.locator("#explain-headers").fill("X-Language: en-us\nAuthorization: SDK-HMAC-SHA256 Access=AK, Signature=the-signature");
    await tab.page.keyboard.press("Tab");
    await tab.page.locator("#explain-go").click();
    await tab.until(() => document.getElementById("explain-sentence").textContent.startsWith("Answered"));
    assert.equal(await tab.text("#explain-sentence"), "Answered from memory: an entry of 12s, fresh for 4m 48s more; this caller has a grant.");
    assert.equal(await tab.text("#explain-action"), "from-memory");
    const sent = [...new URLSearchParams(gateway.explained[0])];
    assert.deepEqual(sent, [
        ["method", "GET"], ["url", "/v2/p/products?limit=1"], ["header", "X-Language: en-us"],
        ["header", "Authorization: SDK-HMAC-SHA256 Access=AK, Signature=the-signature"], ["header", "X-Auth-Token: gAAAA-the-token"],
    ]);
    // Not in a URL, not in the history, and not in the page.
    const values = await tab.page.evaluate(() => [document.documentElement.outerHTML, location.href, JSON.stringify(history.state),
        JSON.stringify(sessionStorage), JSON.stringify(localStorage), ...[...document.querySelectorAll("input, textarea")].map((field) => field.value)].join("\n"));
    for (const secret of ["gAAAA-the-token", "the-signature"]) {
        assert.ok(!values.includes(secret) && tab.requests.every((path) => !path.includes(secret)), secret);
    }
    assert.equal(await tab.page.locator("#explain-headers").inputValue(), "X-Language: en-us");
    // What the gateway says is shown as text.
    gateway.explanation = { verdict: { action: HOSTILE[0], sentence: HOSTILE[1] }, more: HOSTILE };
    await tab.page.locator("#explain-go").click();
    await tab.until((text) => document.getElementById("explain-sentence").textContent === `${text}.`, HOSTILE[1]);
    await tab.page.locator("#explain-more summary").click();
    assert.ok((await tab.text("#explain-text")).includes("window.hurt"));
    assert.equal(await tab.page.evaluate(() => window.hurt), undefined);
});

test("stale answers are shown with their range, their changes and the TTL in force", async () => {
    works();
    await open();
    await tab.state("live");
    assert.deepEqual(await cells("#staleness-operations"), [
        ["ListProducts", "0.42 % 0.21 % to 0.92 %", "1.7 one every 35 min", "5 min", "81 k"],
        ["ListSharerProducts", "below 0.01 % 0 % to 0.31 %", "0.0057 one every 7.3 d", "1 h", "3,999"],
        ["ListProduct", "unknown", "unknown", "5 min", "17"],
    ]);
    assert.ok(!(await isHidden("#staleness-unknown")));
    assert.match(await tab.text("#staleness-unknown"), /^Unknown: there were too few responses of upstream/);
    // Only the operation with several projects is shown by project.
    assert.ok(await isHidden("#staleness-projects"));
    await tab.page.locator("#staleness-by-project > summary").click();
    assert.deepEqual(await cells("#staleness-projects"), [
        ["ListProducts", "0123…cdef", "0.42 % 0.19 % to 1 %", "1.9 one every 32 min", "5 min", "61 k"],
        ["ListProducts", "89ab…4567", "0.41 % 0.03 % to 2 %", "0.6 one every 1.7 h", "5 min", "20 k"],
        ["ListProducts", "4444…8888", "unknown", "unknown", "5 min", "1"],
    ]);
    assert.equal(await tab.text("#staleness-projects caption"), "By project, in the last hour");
    // As soon as there is evidence for all operations, nothing is explained.
    gateway.status = () => ({ ...busy(4010), staleness: busy().staleness.map((each) => ({ ...each, ...measured("", 20, [0, 0.25, 1], 60), projects: [] })) });
    await tab.pass(2);
    assert.deepEqual((await cells("#staleness-operations"))[2], ["ListProduct", "25 % 0 % to 100 %", "60 one every 1 min", "5 min", "20"]);
    assert.ok(await isHidden("#staleness-unknown"));
    assert.ok(await isHidden("#staleness-by-project"));
    // After a restart nothing is known again.
    gateway.status = () => fresh();
    await tab.pass(2);
    assert.ok(await isHidden("#staleness-operations"));
    assert.ok(await isHidden("#staleness-unknown"));
    assert.ok(!(await isHidden("#no-staleness")));
    assert.equal(await tab.text("#no-staleness"), "No figures yet: nothing was answered from memory in the last hour, or the first minute is not over.");
    // An operation without answers beside others.
    gateway.status = () => ({ ...busy(9), staleness: [busy().staleness[0], fresh().staleness[1]] });
    await tab.pass(2);
    assert.deepEqual((await cells("#staleness-operations"))[1], ["ListSharerProducts", "no answers", "unknown", "5 min", "0"]);
    assert.ok(await isHidden("#no-staleness"));
});

test("limits of upstream are shown with what counts now, and with what they held back", async () => {
    works();
    await open();
    await tab.state("live");
    assert.deepEqual(await cells("#quota-limits"), [
        ["API ListProducts", "workspace", "learnt", "the caller that met it, and those without a proof", "812 in the last 1 min; allowed: 2,000", "1,188", "now"],
        ["each user", "workspace", "learnt", "the caller that met it", "200 in the last 5 min; allowed: 200", "0", "in 1 min 12 s"],
        ["source address", "workspace", "configured", "all callers", "5 in the last 1 s; allowed: 5", "0", "in 214 ms"],
    ]);
    assert.ok(!(await isHidden("#quota-callers")));
    assert.ok(await isHidden("#no-limits"));
    assert.deepEqual(await cells("#quota-policies"), [
        ["each user", "2", "41", "2 min 33 s 3.74 s on average", "3", "1"],
        ["source address", "4", "1,250", "7 min 11 s 345 ms on average", "1", "0"],
    ]);
    // A learnt limit ends. What it held back stays.
    gateway.status = () => ({ ...busy(4010), quotas: [limit("ip", 1, 5, 1, { binds_all: false }), limit("ip", 2, 7, 1, { service: "appstream" })] });
    await tab.pass(2);
    assert.deepEqual(await cells("#quota-limits"), [
        ["source address", "workspace", "learnt", "the caller that met it, and those without a proof", "1 in the last 1 s; allowed: 5", "4", "now"],
        ["source address", "appstream", "learnt", "all callers", "2 in the last 1 s; allowed: 7", "5", "now"],
    ]);
    assert.ok(await isHidden("#quota-callers"));
    gateway.status = () => ({ ...busy(4020), quotas: [] });
    await tab.pass(2);
    assert.ok(await isHidden("#quota-limits"));
    assert.match(await tab.text("#no-limits"), /^No limit counts calls now\. /);
    assert.equal((await cells("#quota-policies")).length, 2);
    // Upstream may refuse before anything has waited.
    gateway.status = () => ({ ...fresh(), quota_policies: { app: { ...fresh().quota_policies.app, refused_by_upstream: 1 } } });
    await tab.pass(2);
    assert.deepEqual(await cells("#quota-policies"), [["each application", "0", "0", "0 s", "1", "0"]]);
    gateway.status = () => fresh();
    await tab.pass(2);
    assert.ok(await isHidden("#quota-policies"));
    // A gateway of an older version has no such figures.
    gateway.status = () => {
        const { quota_policies, ...older } = busy();
        return older;
    };
    await tab.pass(2);
    assert.ok(await isHidden("#quotas"));
});

test("at most ten projects are shown, those with most answers", async () => {
    const projects = Array.from({ length: 30 }, (_, index) => measured(`${1000 + (index % 20)}…0000`, index, [0, 0.01, 0.02], 2));
    gateway.status = () => ({ ...busy(), staleness: [{ ...busy().staleness[0], projects }, { ...busy().staleness[2], projects: projects.slice(25) }] });
    await open();
    await tab.state("live");
    await tab.page.locator("#staleness-by-project > summary").click();
    const rows = await cells("#staleness-projects");
    assert.deepEqual(rows.map((row) => row.at(-1)), ["29", "29", "28", "28", "27", "27", "26", "26", "25", "25"]);
    assert.deepEqual(rows.slice(0, 2).map(([operation, project]) => [operation, project]), [["ListProducts", "1009…0000"], ["ListProduct", "1009…0000"]]);
    assert.equal(await tab.text("#staleness-projects caption"), "By project, in the last hour: the 10 with most answers");
    // Shortened ids may be equal.
    gateway.status = () => ({ ...busy(), staleness: [{ ...busy().staleness[0], projects: [projects[1], projects[21]] }] });
    await tab.pass(2);
    assert.deepEqual((await cells("#staleness-projects")).map((row) => row.at(-1)), ["21", "1"]);
});

test("a gateway that does not measure stale answers has no panel for them", async () => {
    gateway.status = () => {
        const { staleness, ...older } = busy();
        return older;
    };
    await open();
    await tab.state("live");
    assert.ok(await isHidden("#staleness"));
    // A newer one may have no operation.
    gateway.status = () => ({ ...busy(4800), staleness: [] });
    await tab.pass(2);
    assert.ok(!(await isHidden("#no-staleness")));
    assert.equal(await tab.text("#no-staleness"), "No figures yet: nothing was answered from memory in the last hour, or the first minute is not over.");
    assert.ok(await isHidden("#staleness-operations"));
    assert.ok(!(await tab.text("main")).match(/NaN|undefined|null|Infinity/));
});

test("charts show the gateway's history at once, and go on with it", async () => {
    let uptime = 4711;
    gateway.status = () => busy((uptime += 2));
    gateway.history = (status, after) => {
        const all = history(status, after);
        // The latest one: 500 hits in ten seconds, and nothing else.
        const last = { hits: 500, others: 0, passed: 20, hits50: 100e-6, hits99: 247e-6, others50: null, others99: null };
        return { ...all, samples: all.samples.map((each) => (each.number === 471 ? { ...each, ...last } : each)) };
    };
    await open();
    await tab.state("live");
    assert.equal(await readout("rate"), "Now (over 10 s): from memory 50/s; upstream was called 0/s; not for the cache 2/s");
    assert.equal(
        await readout("latency"),
        "Now (over 10 s): from memory, p50 100 µs; from memory, p99 247 µs; upstream was called, p50 none; upstream was called, p99 none",
    );
    assert.equal(await tab.page.evaluate(() => past.steps.length), 360);
    assert.equal(await tab.page.locator("#windows [aria-pressed=true]").innerText(), "1 h");
    // Further samples are requested when there are some, and only these.
    await tab.pass(20);
    const asked = tab.requests.filter((path) => path.startsWith("/history"));
    assert.deepEqual(asked, ["/history?after=0", "/history?after=471", "/history?after=472"]);
    assert.equal(await tab.page.evaluate(() => past.steps.at(-1).to), 4730);
    assert.equal(await tab.page.evaluate(() => past.steps.length), 360);
});

test("a moment can be selected with the pointer and with the keyboard", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.page.locator("#windows button", { hasText: "5 min" }).first().click();
    const now = await readout("rate");
    const plot = tab.page.locator("#rate-chart .plot");
    await plot.focus();
    await tab.page.keyboard.press("Home");
    assert.match(await readout("rate"), /^4 min 5\d s ago \(over 10 s\): from memory \d/);
    await tab.page.keyboard.press("End");
    const end = await readout("rate");
    await tab.page.keyboard.press("ArrowLeft");
    const [seconds] = (await readout("rate")).match(/^\d+/);
    assert.match(await readout("latency"), new RegExp(`^${seconds} s ago`));
    assert.equal(await plot.getAttribute("aria-valuenow"), `-${seconds}`);
    const [first] = (await readout("rate")).match(/[\d,.]+\/s/);
    assert.equal(await tab.text("#rate-chart [data-series=hits] b"), first);
    assert.notEqual(await readout("rate"), end);
    // Later, the same moment is still selected.
    await tab.pass(4);
    assert.match(await tab.text("#rate-chart .moment"), new RegExp(`^${Number(seconds) + 4} s ago`));
    assert.equal(await tab.text("#rate-chart [data-series=hits] b"), first);
    await tab.page.keyboard.press("Escape");
    assert.match(await readout("rate"), /^Now \(over 10 s\)/);
    await tab.pass(20);
    await tab.page.locator("#pause").focus();
    assert.notEqual(await readout("rate"), now);
    const box = await plot.boundingBox();
    await tab.page.mouse.move(box.x + box.width - 60, box.y + 30);
    assert.match(await tab.text("#rate-chart .moment"), /^\d+ s ago \(over 10 s\)/);
    await tab.page.mouse.move(5, 5);
    assert.match(await tab.text("#rate-chart .moment"), /^Now/);
});

test("soon after its start the charts show five minutes, and where the gateway was started", async () => {
    works(98);
    await open();
    await tab.state("live");
    assert.equal(await tab.page.locator("#windows [aria-pressed=true]").innerText(), "5 min");
    assert.equal(await tab.page.locator("#rate-chart .restart").count(), 1);
    const box = await tab.page.locator("#rate-chart .plot").boundingBox();
    await tab.page.mouse.move(box.x + 80, box.y + 30);
    assert.match(await tab.text("#rate-chart .moment"), /ago: before the gateway was started$/);
    // A gateway of an older version has no history.
    gateway.history = null;
    await tab.pass(40);
    assert.equal(await tab.page.evaluate(() => document.body.dataset.state), "live");
    assert.equal(await readout("rate"), "Now: no data");
});

test("an outage is shown with its service, its duration and its cause", async () => {
    gateway.status = () => busy(4711.2, { failing: true });
    await open();
    await tab.state("live");
    assert.equal(await tab.text("#upstream .service:first-child .health"), "▲ fails, for 47 s; last success 2 s ago; last failure: 503");
    const events = await tab.page.locator("#events > li").allInnerTexts();
    const times = await tab.page.locator("#events > li > time").evaluateAll((all) => all.map((time) => time.dateTime));
    assert.deepEqual(times, [...times].sort().reverse());
    // All of one kind are one row.
    const outage = events.find((text) => text.includes("fails (503)"));
    assert.match(outage, /▲ outage/);
    assert.match(outage, /workspace fails \(503\): stale responses are served\. · 31 times, first /);
    assert.equal(events.length, 6);
    const others = tab.page.locator("#events > li", { hasText: "outage" }).first().locator("details");
    assert.ok(!(await others.locator("ul").isVisible()));
    assert.equal(await others.locator("summary").innerText(), "Others of this kind: 2");
    await others.locator("summary").click();
    assert.deepEqual(await others.locator("li").allInnerTexts(), ["22:09:38 workspace is failing: no connection. (2 times)"]);
    const time = tab.page.locator("#events time").first();
    assert.match(await time.getAttribute("title"), /^Monday.*2026.*GMT\+08:00\)$/);
    const scopes = tab.page.locator("[data-figure='cache.private_scopes']");
    assert.equal(await scopes.getAttribute("class"), "bad");
});

test("problems of different causes are events of their own", async () => {
    const problem = (kind, what, last_ms) => ({ kind, is_bad: kind === "condition", what, operation: null, project: null, first_ms: last_ms, last_ms, count: 1 });
    gateway.status = () => ({ ...fresh(), events: [
        problem("condition", "cache-full: 9 entries were evicted", 4000),
        problem("condition-ended", "errors has ended", 3000),
        problem("condition", "errors: 5 of 6 responses", 2000),
        problem("condition", "cache-full: 1 entries were evicted", 1000),
    ] });
    await open();
    await tab.state("live");
    const texts = (selector) => tab.page.locator(`#events ${selector}`).allInnerTexts();
    assert.deepEqual(await texts(".kind"), ["▲ condition", "condition-ended", "▲ condition"]);
    assert.deepEqual(await texts(".latest"), ["cache-full: 9 entries were evicted", "errors has ended", "errors: 5 of 6 responses"]);
});

test("one banner says what is wrong, the worst first, and nothing contradicts it", async () => {
    works();
    await open();
    await tab.state("live");
    assert.equal(await tab.text("#banner"), "●No problem is known.");
    assert.equal(await tab.page.locator("#banner").getAttribute("class"), "banner good");
    assert.equal(await tab.text("#liveness"), "Live");
    assert.match(await tab.text("#verdict"), /^Yes\./);
    works(4700, {}, { conditions: SEVERAL });
    await tab.pass(2);
    assert.equal(await tab.page.locator("#banner").getAttribute("class"), "banner bad");
    const shown = (await tab.page.locator("#conditions li").allInnerTexts()).map((text) => text.replaceAll("\n", " "));
    assert.equal(shown[0], "▲Workspace is failing: it answers 503; 31 calls have failed. upstream-failing Since 23:17:34 (47 s). See the log.");
    assert.match(shown[2], /^△Workspace limits calls: .* throttled Since 23:18:10 \(12 s\)\. Until 23:19:34 \(in 1 min 13 s\)\./);
    assert.deepEqual(await tab.page.locator("#conditions .tag").allInnerTexts(), ["upstream-failing", "bypassed", "throttled", "reload-refused"]);
    assert.ok(await isHidden("#no-conditions"));
    assert.equal(await tab.text("#liveness"), "Live, with a problem");
    assert.match(await tab.text("#verdict"), /^Since the start, yes\./);
    assert.equal(await tab.page.title(), "▲ upstream-failing · workspace-gateway");
    assert.equal(await tab.page.locator("#announce").textContent(), "workspace is failing: it answers 503; 31 calls have failed.");
    works(4710, {}, { conditions: SEVERAL.slice(2) });
    await tab.pass(2);
    assert.equal(await tab.page.locator("#banner").getAttribute("class"), "banner warn");
    assert.equal(await tab.text("#liveness"), "Live, with a warning");
    assert.match(await tab.text("#verdict"), /^Yes\./);
    works(4720);
    await tab.pass(2);
    assert.equal(await tab.page.locator("#announce").textContent(), "No problem is known any more.");
    // A gateway of an older version does not say it.
    works(4730, {}, { conditions: undefined });
    await tab.pass(2);
    assert.ok(await isHidden("#banner"));
    assert.equal(await tab.text("#liveness"), "Live");
});

test("in bypass mode the banner says how to end it", async () => {
    gateway.status = () => bypass();
    await open();
    await tab.state("live");
    assert.equal(await tab.text("#conditions code"), `curl -X PUT -d cache ${gateway.origin}/mode`);
    assert.match(await tab.text("#verdict"), /^Not now: the cache is switched off\./);
    gateway.status = () => busy(4715);
    await tab.pass(2);
    assert.equal(await tab.page.locator("#conditions li").count(), 0);
    assert.equal(await tab.page.locator("#announce").textContent(), "The mode is now cache.");
});

test("the page asks for a token only if the gateway needs one", async () => {
    await open();
    await tab.state("live");
    assert.ok(await isHidden("#token-form"));
    assert.ok(await isHidden("#forget"));
    gateway.token = "s3cret-of-the-operator";
    await tab.pass(2);
    assert.equal(await tab.page.evaluate(() => document.body.dataset.state), "locked");
    assert.ok(await isHidden("#content"));
    // Without a token there are no further requests.
    const polls = tab.polls();
    await tab.page.clock.runFor(60_000);
    assert.equal(tab.polls(), polls);
    const field = tab.page.locator("#token");
    assert.ok(await field.evaluate((input) => input === document.activeElement));
    assert.equal(await tab.text("#token-form .wrong"), "");

    await field.fill("two words");
    await tab.page.keyboard.press("Enter");
    assert.match(await tab.page.locator("#token-wrong").textContent(), /^A token has only ASCII characters/);
    assert.equal(tab.polls(), polls);
    await field.fill("guess");
    await tab.page.keyboard.press("Enter");
    await tab.until(() => document.getElementById("token-wrong").textContent === "This token is wrong: the gateway answers 401.");
    assert.equal(await tab.page.evaluate(() => sessionStorage.length), 0);

    await field.fill(gateway.token);
    await tab.page.keyboard.press("Enter");
    await tab.state("live");
    assert.ok(await isHidden("#token-form"));
    // The token is also used for the entries and the configuration, and after a reload of the page.
    await tab.page.locator("#config summary").click();
    await tab.until(() => document.getElementById("config-text").textContent.includes("[listen]"));
    await tab.page.reload();
    await tab.state("live");
    assert.ok(tab.requests.every((path) => !path.includes("s3cret")));
    assert.ok(!tab.page.url().includes("s3cret"));
    assert.equal(await tab.page.evaluate(() => localStorage.length), 0);

    await tab.page.locator("#forget").click();
    assert.equal(await tab.page.evaluate(() => document.body.dataset.state), "locked");
    assert.equal(await tab.page.evaluate(() => sessionStorage.length), 0);
    assert.equal(await tab.page.locator("#token-wrong").textContent(), "");
    assert.equal(await tab.page.locator("#config-text").textContent(), "");
    await tab.page.reload();
    await tab.state("locked");
});

test("the page shows at once when the gateway does not respond, and when it responds again", async () => {
    works();
    gateway.entries = entries(3);
    await open();
    await tab.state("live");
    await tab.pass(20);
    const answered = await tab.text("[data-figure='savings.answered']");
    gateway.isGone = true;
    await tab.pass(10);
    assert.equal(await tab.page.evaluate(() => document.body.dataset.state), "stale");
    assert.equal(await tab.text("#conditions"), "▲No response from the gateway: the gateway cannot be reached. no-data\nAll figures are from 10 s ago. The page tries again every 2 s.");
    assert.equal(await tab.text("#liveness"), "No response · as of 10 s ago");
    const ages = await tab.page.locator("#content h2").evaluateAll((all) => all.map((title) => title.dataset.age));
    assert.deepEqual([...new Set(ages)], ["as of 10 s ago"]);
    // The figures are those of the last response.
    assert.equal(await tab.text("[data-figure='savings.answered']"), answered);
    assert.equal(await tab.page.locator("#announce").textContent(), "No response from the gateway: the gateway cannot be reached.");
    await tab.pass(20);
    assert.equal(await readout("rate"), "Now: no data");
    for (const chart of ["rate", "latency"]) {
        assert.equal(await tab.page.locator(`#${chart}-chart .gap`).count(), 1);
    }
    assert.equal(await tab.page.title(), "▲ no-data · workspace-gateway");
    // The age also grows between two requests.
    await tab.page.clock.runFor(1000);
    assert.equal(await tab.text("#liveness"), "No response · as of 31 s ago");
    await tab.page.clock.runFor(1000);
    await tab.until(() => state.isLoading === false);

    gateway.isGone = false;
    await tab.pass(2);
    assert.equal(await tab.page.evaluate(() => document.body.dataset.state), "live");
    assert.ok(!(await isHidden("#no-conditions")));
    assert.equal(await tab.page.locator("#announce").textContent(), "The gateway answers again.");
    // The gateway has kept what happened meanwhile.
    works(4060);
    await tab.pass(2);
    assert.match(await readout("rate"), /^Now \(over 10 s\): from memory/);
    assert.equal(await tab.page.locator(".gap").count(), 0);
});

test("a response that the page does not understand counts as none", async () => {
    works();
    await open();
    await tab.state("live");
    gateway.status = () => ({ hello: "world" });
    await tab.pass(2);
    assert.match(await tab.text("#conditions strong"), /the response is not what this page expects\.$/);
    gateway.status = () => busy(5000);
    await tab.pass(2);
    assert.equal(await tab.page.evaluate(() => document.body.dataset.state), "live");
});

test("after a restart of the gateway nothing is compared with before", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.pass(6);
    works(0);
    await tab.pass(2);
    assert.equal(await tab.page.locator("#announce").textContent(), "The gateway was restarted. Its figures start from zero.");
    await tab.pass(4);
    assert.equal(await readout("rate"), "The first values appear ten seconds after the start of the gateway");
    await tab.pass(20);
    assert.match(await readout("rate"), /^Now \(over 10 s\): from memory \d/);
    assert.equal(await tab.page.locator("#rate-chart .restart").count(), 1);
    // The page may have an older version than the gateway.
    gateway.status = () => ({ ...busy(20), version: "0.2.0" });
    await tab.pass(2);
    assert.equal(await tab.text("#banner-version"), "The gateway now has version 0.2.0, and this page has 0.1.0. Reload the page.");
});

test("an unknown figure is not shown as a number", async () => {
    gateway.status = () => unknown();
    await open();
    await tab.state("live");
    const saved = tab.page.locator("[data-figure='savings.seconds_saved']");
    assert.equal(await saved.innerText(), "not known yet");
    assert.equal(await saved.getAttribute("data-value"), "null");
    assert.equal(await tab.text("#saved-why"), "There was no upstream call yet whose duration is known.");
    assert.equal(await tab.text("[data-figure='savings.hit_ratio']"), "100 %");
    assert.equal(await tab.text("#upstream .service:first-child .health"), "○ no result yet");
    assert.ok(!(await tab.text("main")).match(/NaN|undefined|null|Infinity/));
});

test("a thousand entries can be sorted with the keyboard", async () => {
    const queries = Array.from({ length: 1000 }, (_, index) => `n=${String(index).padStart(4, "0")}`);
    queries[7] = `long=${"x".repeat(4000)}`;
    gateway.entries = entries(1000, queries);
    gateway.total = 1234;
    works();
    await open();
    await tab.state("live");
    const rows = tab.page.locator("#entries tbody tr");
    assert.equal(await rows.count(), 100);
    assert.equal(await tab.text("#entries-note"), "1,234 entries; the 100 with most hits are shown.");
    await tab.page.locator("#more-entries").click();
    await tab.until(() => document.querySelectorAll("#entries tbody tr").length === 1000);
    assert.ok(tab.requests.includes("/cache/entries?limit=1000"));
    assert.ok(await isHidden("#more-entries"));
    const header = tab.page.locator("#entries th").first();
    await header.locator("button").focus();
    await tab.page.keyboard.press("Enter");
    assert.equal(await header.getAttribute("aria-sort"), "ascending");
    assert.match(await rows.first().innerText(), /^long=x+…/);
    await tab.page.keyboard.press("Enter");
    assert.equal(await header.getAttribute("aria-sort"), "descending");
    assert.match(await rows.first().innerText(), /^n=0999/);
    assert.equal(await tab.page.locator("#entries th[aria-sort=none]").count(), 7);
    // A long query unfolds. It stays unfolded and keeps the focus.
    await tab.page.keyboard.press("Enter");
    const fold = rows.first().locator("summary");
    await fold.focus();
    await tab.page.keyboard.press("Enter");
    const before = await rows.first().innerText();
    assert.ok(before.includes("x".repeat(4000)));
    gateway.entries.unshift({ ...entries(1)[0], query: "a=1", hits: 99999 });
    await tab.pass(2);
    assert.match(await rows.first().innerText(), /^a=1/);
    assert.ok(await tab.page.evaluate(() => document.activeElement.tagName === "SUMMARY" && document.activeElement.parentElement.open));
    // Numbers are sorted as numbers.
    await tab.page.locator("#entries th", { hasText: "Size" }).locator("button").click();
    const sizes = await tab.page.locator("#entries td.bytes").evaluateAll((all) => all.map((cell) => Number(cell.title.replace(/\D/g, ""))));
    assert.deepEqual(sizes, [...sizes].sort((one, other) => other - one));
});

test("hostile text is shown as text", async () => {
    gateway.status = () => hostile();
    gateway.entries = entries(HOSTILE.length, HOSTILE).map((entry, index) => ({
        ...entry, project: HOSTILE[index], operation: HOSTILE[0], state: index === 0 ? HOSTILE[1] : "fresh", headers: { [HOSTILE[2]]: HOSTILE[0] },
    }));
    gateway.config = `# ${HOSTILE.join("\n# ")}`;
    await open();
    await tab.state("live");
    await tab.page.locator("#config summary").click();
    await tab.until(() => document.getElementById("config-text").textContent.includes("onerror"));
    await tab.pass(4);
    assert.equal(await tab.page.evaluate(() => window.hurt), undefined);
    assert.equal(await tab.page.locator("main img, main script, main a, main svg svg, main [onerror], main [onload]").count(), 0);
    const shown = await tab.page.locator("#entries td.query").evaluateAll((all) => all.map((cell) => cell.firstChild.textContent));
    const [bidi] = HOSTILE.filter((text) => text.includes("\u202E"));
    assert.deepEqual(new Set(shown), new Set(HOSTILE.map((text) => (text === bidi ? "\\u{202e}evil\\u{202c} \\u{0}\\u{7}" : text))));
});

test("pause stops the requests, and the page says so", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.pass(6);
    const button = tab.page.locator("#pause");
    assert.equal(await button.innerText(), "Pause");
    await button.click();
    assert.equal(await button.innerText(), "Resume");
    assert.equal(await tab.page.locator("#announce").textContent(), "Paused.");
    const polls = tab.polls();
    await tab.page.clock.runFor(30_000);
    assert.equal(tab.polls(), polls);
    assert.equal(await tab.text("#liveness"), "Paused · as of 30 s ago");
    await button.click();
    await tab.settled(polls + 1);
    await tab.pass(2);
    // Also for a shorter time than a response may take.
    await button.click();
    await tab.page.clock.runFor(6000);
    await button.click();
    await tab.settled(polls + 3);
    assert.equal(await tab.page.locator("#announce").textContent(), "Live again.");
});

test("an age is shown in whole seconds, whenever it began", async () => {
    await open();
    const ages = await tab.page.evaluate(() => Array.from({ length: 10_000 }, (_, begun) => ago((begun + 30_000) / 1000 - begun / 1000)));
    assert.deepEqual([...new Set(ages)], ["30 s ago"]);
});

test("each operation has its results, its misses and bypasses by reason, and its latency", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.page.locator("#results-details > summary").click();
    const [list, sharer, product] = await cells("#operations");
    assert.deepEqual(list.slice(2), ["no-grant 31 expired 180", "none", "42 µs · 213 µs", "187 ms · 1.2 s"]);
    assert.match(sharer[1], /^hit 4,000 expired 1,\d{3} miss 9$/);
    assert.deepEqual(sharer.slice(2), ["expired 32", "none", "40 µs · 1.2 ms", "210 ms · 2.5 s"]);
    assert.deepEqual(product.slice(2), ["client-no-cache 4", "no-credential 9 repeated-parameter 5 range 3", "44 µs · 99 µs", "none · none"]);
    assert.match((await tab.text("#statuses")).replaceAll("\n", " "), /^2xx 17\d k 3xx 12 4xx \d+ 5xx 0$/);
    // A gateway of an older version has only the results.
    const { statuses, ...requests } = busy(4100).requests;
    works(4100, {}, { requests: { ...requests, operations: [{ operation: "ListProducts", results: { hit: 1 } }] } });
    await tab.pass(2);
    assert.deepEqual(await cells("#operations"), [["ListProducts", "hit 1", "none", "none", "none · none", "none · none"]]);
});

test("numbers have three digits and a unit", async () => {
    await open();
    const shown = await tab.page.evaluate(() => ({
        counts: [0, 9_999, 10_000, 12_345, 999_499, 999_500, 1_234_567, 4.2e9].map(count),
        ratios: [0, 0.0004, 0.948123, 0.99951, 1].map(ratio),
        sizes: [512, 34_567_891].map(bytes),
    }));
    assert.deepEqual(shown.counts, ["0", "9,999", "10 k", "12.3 k", "999 k", "1 M", "1.23 M", "4.2 G"]);
    assert.deepEqual(shown.ratios, ["0 %", "below 0.1 %", "94.8 %", "99.9 %", "100 %"]);
    assert.deepEqual(shown.sizes, ["512 bytes", "33 MiB"]);
});

test("a hidden tab sends no requests", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.pass(4);
    const turn = (isHidden) => tab.page.evaluate((hidden) => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    }, isHidden);
    await turn(true);
    const polls = tab.polls();
    await tab.page.clock.runFor(120_000);
    assert.equal(tab.polls(), polls);
    await turn(false);
    await tab.settled(polls + 1);
});

test("there is no other request while a response is slow", async () => {
    works();
    await open();
    await tab.state("live");
    await tab.pass(2);
    let release;
    gateway.held = new Promise((done) => (release = done));
    const polls = tab.polls();
    await tab.page.clock.runFor(2000);
    await tab.until(() => state.isLoading);
    await tab.page.clock.runFor(6000);
    // Also if the user pauses and resumes.
    await tab.page.locator("#pause").click();
    await tab.page.locator("#pause").click();
    assert.equal(tab.polls(), polls + 1);
    gateway.held = null;
    release();
    // Then there is one request at once, and only one.
    await tab.until(() => state.isLoading === false);
    // The status, the entries and, if a new sample is due, the history.
    assert.ok(gateway.most <= 3, String(gateway.most));
    assert.equal(await tab.page.locator("#announce").textContent(), "Live again.");
    await tab.page.clock.runFor(10);
    await tab.settled(polls + 2);
});

/** The engine of a fleet, in `/status`. */
function engine(changes = {}) {
    return { state: "in-use", keys: "wg2:{default}:0a1b2c3d:", in_sync: true, sync_age_seconds: 0, missed: 0, to_tell: 0, claims: { led: 2, answered: 5, alone: 0 }, told: { told: 1, stranger: 0 }, lookups: { record: 12, none: 3, late: 0 }, mean_lookup_seconds: 0.000214, stores: { stored: 3, failed: 0 }, faults: { silent: 0 }, ...changes };
}

test("the engine of a fleet is shown with its state, and not without one", async () => {
    works();
    gateway.status = () => ({ ...busy(), fleet: null });
    await open();
    await tab.state("live");
    assert.ok(await isHidden("#fleet"));
    gateway.status = () => ({ ...busy(4000), fleet: engine() });
    await tab.pass(2);
    assert.equal(await tab.text("#fleet-state"), "In use. In sync: what other gateways have proved counts here. A look-up takes 214 µs on average. Its keys are wg2:{default}:0a1b2c3d:… (the same at all gateways of the fleet).");
    assert.equal(await tab.text("#fleet-lookups"), "record\n12\nnone\n3");
    assert.equal(await tab.text("#fleet-claims"), "led\n2\nanswered\n5");
    assert.equal(await tab.text("#fleet-told"), "told\n1");
    gateway.status = () => ({ ...busy(4010), fleet: engine({ state: "silent", in_sync: false, sync_age_seconds: 61.2, to_tell: 2, faults: { silent: 4 }, mean_lookup_seconds: null }) });
    await tab.pass(2);
    assert.equal(await tab.text("#fleet-state"), "Not in use: silent. This gateway works alone. Not in sync for 1 min 1 s: callers that only other gateways have proved are proved here again. Not told yet: 2 (denials, purges, invalidations and private scopes). Its keys are wg2:{default}:0a1b2c3d:… (the same at all gateways of the fleet).");
    assert.equal(await tab.text("#fleet-faults"), "silent\n4");
    gateway.status = () => ({ ...busy(4020), fleet: engine({ state: "full", in_sync: false, sync_age_seconds: 5, mean_lookup_seconds: null }) });
    await tab.pass(2);
    assert.match(await tab.text("#fleet-state"), /^Full: it has no memory for new data\. It accepts nothing new, so no gateway is in sync\. Not in sync for 5 s/);
});

test("for screen readers there are landmarks, headings in order, and tables with captions", async () => {
    works();
    gateway.entries = entries(3);
    gateway.status = () => ({ ...busy(), fleet: engine() });
    await open();
    await tab.state("live");
    await tab.page.locator("#results-details > summary").click();
    const captions = await tab.page.locator("table").evaluateAll((all) => all.map((table) => table.caption?.textContent));
    assert.deepEqual(captions, ["By operation", "By result, since the start", "The last 200 requests, the latest first", "Callers, those that were refused first", "By operation, in the last hour", "By project, in the last hour", "Entries", "Limits that count calls now", "Calls that limits held back or refused, since the start"]);
    const headings = await tab.page.locator("#content h2").allTextContents();
    assert.deepEqual(headings, ["Is it helping?", "Requests", "Requests now", "Callers by id", "Explain a request", "Stale answers", "In the cache", "Quotas", "Engine of the fleet", "Callers", "Upstream", "Events", "Configuration"]);
    for (const name of headings) {
        assert.equal(await tab.page.getByRole("region", { name, exact: true }).count(), 1, name);
    }
    for (const landmark of ["banner", "main", "contentinfo"]) {
        assert.equal(await tab.page.getByRole(landmark).count(), 1, landmark);
    }
    const levels = await tab.page.locator("h1, h2, h3, h4").evaluateAll((all) => all.filter((title) => title.checkVisibility()).map((title) => Number(title.tagName[1])));
    assert.ok(levels.every((level, index) => level <= (levels[index - 1] ?? 0) + 1), String(levels));
    // Text that changes every two seconds is not announced.
    const live = await tab.page.locator("[aria-live], [role=status], [role=alert], [role=log]").evaluateAll((all) => all.map((place) => place.id));
    assert.deepEqual(live, ["announce", "token-wrong"]);
    assert.equal(await tab.page.getByRole("table", { name: "Entries" }).getByRole("columnheader").count(), 8);
});

test("Tab reaches everything in reading order, and the focus is visible", async () => {
    works();
    gateway.entries = entries(3);
    await open({ viewport: PHONE });
    await tab.state("live");
    await tab.pass(2);
    const reached = [];
    for (;;) {
        await tab.page.keyboard.press("Tab");
        const here = await tab.page.evaluate(() => {
            const place = document.activeElement;
            const { outlineStyle, outlineWidth } = getComputedStyle(place);
            const name = place.id || place.closest("[id]")?.id || place.tagName;
            return { name, top: place.getBoundingClientRect().top + scrollY, isSeen: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2, isEnd: place === document.body };
        });
        if (here.isEnd) {
            break;
        }
        assert.ok(here.isSeen, here.name);
        reached.push(here);
    }
    assert.deepEqual(
        reached.map(({ name }) => name),
        ["pause", "windows", "windows", "windows", "rate-chart", "latency-chart", "results-details", ...["operation", "result", "status", "caller", "client", "slow", "start"].map((name) => `tail-${name}`),
            "by-id-scroll", ...["url", "method", "token", "headers", "go"].map((name) => `explain-${name}`), "staleness-by-project", "cache-scroll", ...Array(8).fill("entries"), "config"],
    );
    const tops = reached.map(({ top }) => top);
    assert.deepEqual(tops, [...tops].sort((one, other) => one - other));
});
