// The real program: when it has no more requests, every figure on its page is the same as in /metrics.
//
// WORKSPACE_GATEWAY_TEST_PROGRAM is the path of the program.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import http from "node:http";
import { after, before, test } from "node:test";

import { Tab, launch } from "./support.mjs";

const program = process.env.WORKSPACE_GATEWAY_TEST_PROGRAM;
assert.ok(program, "WORKSPACE_GATEWAY_TEST_PROGRAM is not set");

let browser, demo;
before(async () => {
    browser = await launch();
    demo = await Demo.start();
});
after(async () => {
    await browser.close();
    await demo?.stop();
});

/** `demo` after its scenes. It goes on running. */
class Demo {
    static async start() {
        const demo = new Demo();
        demo.process = spawn(program, ["demo"], { stdio: ["ignore", "pipe", "inherit"] });
        demo.ended = new Promise((done) => demo.process.on("exit", done));
        let output = "";
        for await (const piece of demo.process.stdout) {
            output += piece;
            if (output.includes("Press Ctrl-C to stop.")) {
                break;
            }
        }
        const find = (what) => what.exec(output)?.[1] ?? assert.fail(`${what} is not in:\n${output}`);
        demo.proxy = `http://${find(/'http:\/\/([^/']+)\/v2\//)}`;
        demo.metrics = `http://${find(/http:\/\/([^/ ]+)\/metrics/)}`;
        demo.admin = `http://${find(/http:\/\/([^/ ]+)\/explain/)}`;
        demo.token = find(/'X-Auth-Token: ([^']+)'/);
        demo.project = find(/'http:\/\/[^/']+\/v2\/([^/]+)\/products/);
        return demo;
    }

    async stop() {
        this.process.kill("SIGTERM");
        await this.ended;
    }

    /** Sends a request as a client, on a new connection. */
    request(path, headers = {}) {
        return read(`${this.proxy}${path.replace("PROJECT", this.project)}`, { "X-Auth-Token": this.token, ...headers });
    }
}

function read(url, headers = {}) {
    return new Promise((done, failed) => {
        http.get(url, { agent: false, headers }, (response) => {
            let text = "";
            response.setEncoding("utf8").on("data", (piece) => (text += piece)).on("end", () => done({ status: response.statusCode, text })).on("error", failed);
        }).on("error", failed);
    });
}

const ESTIMATES = /^workspace_gateway_(stale_answers_|changes_per_hour)/;

/** The gateway's series: names, labels and values. */
class Metrics {
    constructor(text) {
        const lines = text.split("\n").filter((line) => line.startsWith("workspace_gateway_"));
        // Estimates change with time, not only with requests.
        this.text = lines.filter((line) => !ESTIMATES.test(line)).join("\n");
        this.start = Number(/^process_start_time_seconds (.+)$/m.exec(text)?.[1]);
        this.series = lines.join("\n").split("\n").map((line) => {
            const [, name, labels = "", value] = /^workspace_gateway_(\w+?)(?:\{(.*)\})? (\S+)$/.exec(line) ?? assert.fail(line);
            return { name, labels: Object.fromEntries([...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key, text])), value: Number(value) };
        });
    }

    static async read(demo) {
        return new Metrics((await read(`${demo.metrics}/metrics`)).text);
    }

    /** The sum of all series with this name and these labels. A condition is a value, or a set of values. */
    sum(name, conditions = {}) {
        const fits = ({ labels }) => Object.entries(conditions).every(([label, wanted]) => (wanted instanceof Set ? wanted.has(labels[label]) : labels[label] === wanted));
        return this.series.filter((series) => series.name === name && fits(series)).reduce((sum, { value }) => sum + value, 0);
    }

    values(name, label) {
        return new Set(this.series.filter((series) => series.name === name).map(({ labels }) => labels[label]));
    }
}

const HITS = new Set(["hit", "revalidating", "backoff", "negative"]);
const OTHERS = new Set(["miss", "expired", "coalesced", "stale", "stale-if-slow"]);
const SAVES = new Set([...HITS, "coalesced"]);
const CALLS = new Set(["miss", "expired"]);
const NO_OPERATIONS = new Set(["workspace", "appstream", "own", "none"]);

function savings(metrics) {
    const operations = new Set([...metrics.values("requests_total", "operation")].filter((name) => !NO_OPERATIONS.has(name)));
    const requests = (result) => metrics.sum("requests_total", { operation: operations, result });
    const answered = requests(HITS) + requests(OTHERS);
    const calls = metrics.sum("fetches_total");
    let saved = null;
    for (const operation of operations) {
        const of = (part, result) => metrics.sum(`request_duration_seconds_${part}`, { operation, result });
        if (of("count", CALLS) > 0) {
            saved = (saved ?? 0) + (of("count", SAVES) * of("sum", CALLS)) / of("count", CALLS) - of("sum", SAVES);
        }
    }
    return {
        answered, hits: requests(HITS), coalesced: requests("coalesced"), hit_ratio: answered > 0 ? requests(HITS) / answered : null, upstream_calls: calls,
        calls_saved: Math.max(0, answered - calls), seconds_saved: saved,
    };
}

/** As Prometheus' histogram_quantile computes it. */
function quantile(metrics, operation, result, part) {
    const bounds = [...metrics.values("request_duration_seconds_bucket", "le")].filter((bound) => bound !== "+Inf");
    const buckets = bounds.map((le) => metrics.sum("request_duration_seconds_bucket", { operation, result, le }));
    const rank = part * metrics.sum("request_duration_seconds_count", { operation, result });
    const found = buckets.findIndex((below) => below >= rank);
    if (rank === 0 || found < 0) {
        return rank === 0 ? null : Number(bounds.at(-1));
    }
    const [lower, before] = found === 0 ? [0, 0] : [Number(bounds[found - 1]), buckets[found - 1]];
    return lower + ((Number(bounds[found]) - lower) * (rank - before)) / (buckets[found] - before);
}

/** The value that a figure must have by /metrics, or undefined. */
function expected(name, metrics) {
    const [, ...rest] = name.split(".");
    const last = rest.at(-1);
    const rows = [
        [/^savings\./, () => savings(metrics)[last]],
        [/^requests\.in_flight$/, () => metrics.sum("requests_in_flight")],
        [/^requests\.connections$/, () => metrics.sum("connections")],
        [/^requests\.results\./, () => metrics.sum("requests_total", { result: last })],
        [/^requests\.statuses\./, () => metrics.series.filter(({ name, labels }) => name === "requests_total" && labels.status[0] === last[0])
            .reduce((sum, { value }) => sum + value, 0)],
        [/^requests\.operations\.\w+\.misses\./, () => metrics.sum("misses_total", { operation: rest[1], reason: last })],
        [/^requests\.operations\.\w+\.bypasses\./, () => metrics.sum("bypasses_total", { operation: rest[1], reason: last })],
        [/^requests\.operations\.\w+\.latency\./, () => quantile(metrics, rest[1], last.startsWith("hits") ? HITS : OTHERS, Number(last.slice(-2)) / 100)],
        [/^requests\.operations\./, () => metrics.sum("requests_total", { operation: rest[1], result: last })],
        [/^latency\.hits\./, () => metrics.sum(`request_duration_seconds_${last}`, { result: HITS })],
        [/^latency\.others\./, () => metrics.sum(`request_duration_seconds_${last}`, { result: OTHERS })],
        [/^(cache\.entries|entries\.total)$/, () => metrics.sum("entries")],
        [/^cache\.bytes$/, () => metrics.sum("entries_bytes")],
        [/^cache\.evictions\./, () => metrics.sum("evictions_total", { cause: last })],
        [/^cache\.(uncacheable_keys|private_scopes)$/, () => metrics.sum(last)],
        [/^cache\.refreshes$/, () => metrics.sum("refreshes_total")],
        [/^memory\.used_bytes$/, () => metrics.sum("memory_used_bytes")],
        [/^memory\.budget_bytes$/, () => metrics.sum("memory_budget_bytes")],
        [/^memory\.refusals$/, () => metrics.sum("memory_refusals_total")],
        [/^callers\.grants$/, () => metrics.sum("grants")],
        [/^callers\.proofs\./, () => metrics.sum("proofs_total", { result: last })],
        [/^callers\.denials\./, () => metrics.sum("denials_total", { source: last })],
        [/^callers\.signatures\./, () => metrics.sum("signatures_total", { result: last })],
        [/^upstream\.\w+\.requests\./, () => metrics.sum("upstream_requests_total", { service: rest[0], status: last })],
        [/^upstream\.\w+\.in_flight$/, () => metrics.sum("upstream_requests_in_flight", { service: rest[0] })],
        [/^upstream\.\w+\.queued$/, () => metrics.sum("upstream_calls_queued", { service: rest[0] })],
        [/^upstream\.\w+\.retries$/, () => metrics.sum("upstream_retries_total", { service: rest[0] })],
        [/^upstream\.\w+\.count$/, () => metrics.sum("upstream_duration_seconds_count", { service: rest[0] })],
        [/^upstream\.\w+\.seconds$/, () => metrics.sum("upstream_duration_seconds_sum", { service: rest[0] })],
        [/^unstored\./, () => metrics.sum("unstored_responses_total", { reason: last })],
        [/^backoffs\./, () => metrics.sum("backoffs_total", { cause: last })],
        [/^staleness\.\w+\.ttl_seconds$/, () => metrics.sum("ttl_seconds", { operation: rest[0] })],
        [/^quota_policies\.\w+\.waiting$/, () => metrics.sum("quota_waiting", { policy: rest[0] })],
        [/^quota_policies\.\w+\.waits$/, () => metrics.sum("quota_wait_seconds_count", { policy: rest[0] })],
        [/^quota_policies\.\w+\.wait_seconds$/, () => metrics.sum("quota_wait_seconds_sum", { policy: rest[0] })],
        [/^quota_policies\.\w+\.refused_by_/, () => metrics.sum("quota_refusals_total", { policy: rest[0], source: last.replace("refused_by_", "") })],
        [/^version$/, () => [...metrics.values("build_info", "version")][0]],
    ];
    return rows.find(([what]) => what.test(name))?.[1]();
}

/** Figures that are in no metric, with their values when there are no requests. The limits are the default settings. */
const NO_METRIC = {
    mode: "cache",
    // `demo` has no log.
    log_level: null,
    "cache.max_bytes": 64 * 1024 * 1024,
    "callers.max_grants": 100_000,
};

const isClose = (one, other) => one === other || (typeof one === "number" && Math.abs(one - other) <= 1e-9 * Math.max(1, Math.abs(other)));

test("every figure is the same as in /metrics", async () => {
    // Cases that the scenes of the demo do not have.
    const { status } = await demo.request("/v2/PROJECT/products?os_type=Linux");
    assert.equal(status, 200);
    await demo.request("/v2/PROJECT/products?os_type=Linux", { Range: "bytes=0-9" });
    await demo.request("/v2/PROJECT/products?os_type=Linux&os_type=Windows");
    await demo.request("/v2/PROJECT/something-else");
    await demo.request("/nothing/here");
    await demo.request("/v1/PROJECT/product?package_type=general");

    const tab = await Tab.open(browser, { origin: demo.admin }, { fakeClock: false });
    await tab.state("live");
    await tab.page.locator("#results-details > summary").click();
    // Wait until /metrics is the same before and after the page has got its status.
    let [metrics, figures] = [await Metrics.read(demo), []];
    for (;;) {
        await tab.page.evaluate(() => new Promise((done) => {
            const before = state.at;
            const wait = () => (state.at > before && !state.isLoading ? done() : setTimeout(wait, 20));
            wait();
        }));
        figures = await tab.figures();
        const now = await Metrics.read(demo);
        if (now.text === metrics.text && now.sum("requests_in_flight") === 0 && now.sum("upstream_requests_in_flight") === 0) {
            break;
        }
        metrics = now;
    }
    const wrong = [];
    for (const { name, value, text } of figures) {
        if (name === "uptime_seconds") {
            assert.ok(Math.abs(Date.now() / 1000 - metrics.start - value) < 10, `up ${value}`);
            continue;
        }
        if (/^staleness\.\w+\.projects\./.test(name) || (/^staleness\./.test(name) && !name.endsWith(".ttl_seconds"))) {
            // Estimates that were made at other moments. The demo sends too few requests for one.
            assert.ok(value === null || value >= 0, `${name} is ${value}`);
            continue;
        }
        if (name.startsWith("quotas.")) {
            continue;
        }
        const wanted = name in NO_METRIC ? NO_METRIC[name] : expected(name, metrics);
        if (!isClose(value, wanted)) {
            wrong.push(`${name} is ${value} (${text}), and should be ${wanted}`);
        }
    }
    assert.deepEqual(wrong, []);
    // Of the limits of a policy, the metrics have the one with the fewest calls left.
    for (const part of ["calls", "remaining"]) {
        const limits = figures.filter(({ name }) => new RegExp(`^quotas\\.workspace\\.api\\.\\w+\\.${part}$`).test(name)).map(({ value }) => value);
        assert.equal(limits.length, 2, "one for each operation that was called");
        assert.equal(Math.min(...limits), metrics.sum(`quota_${part}`, { service: "workspace", policy: "api" }));
    }
    // No figure is missing.
    const names = new Set(figures.map(({ name }) => name));
    const results = [...metrics.values("requests_total", "result")].map((result) => `requests.results.${result}`);
    const services = ["workspace", "appstream"].flatMap((service) => [...metrics.values("upstream_requests_total", "status")]
        .filter((status) => metrics.sum("upstream_requests_total", { service, status }) > 0).map((status) => `upstream.${service}.requests.${status}`));
    const missing = [...results, ...services, "savings.hit_ratio", "savings.seconds_saved", "requests.operations.ListProducts.misses.no-grant", "unstored.denied", "requests.operations.ListProducts.bypasses.range", "quota_policies.ip.waits", "quota_policies.ip.refused_by_upstream", "quotas.workspace.api.ListProducts.remaining"].filter((name) => !names.has(name));
    assert.deepEqual(missing, []);
    assert.ok(figures.find(({ name }) => name === "savings.hits").value > 200);

    // The entries are those that were requested, and the page has no secret.
    const rows = await tab.page.locator("#entries tbody tr").allInnerTexts();
    assert.equal(rows.length, metrics.sum("entries"));
    assert.ok(rows.some((row) => row.includes("os_type=Linux") && row.includes("ListProducts")));
    await tab.page.locator("#config > summary").click();
    await tab.until(() => document.getElementById("config-text").textContent.includes("[listen]"));
    const page = await tab.page.locator("html").innerText();
    assert.ok(!page.includes(demo.token) && !page.includes(demo.project));
    if (process.env.SCREENSHOTS) {
        await tab.page.evaluate(() => scrollTo(0, 0));
        await tab.page.screenshot({ path: `${process.env.SCREENSHOTS}/demo-light-desktop.png`, fullPage: true });
    }
    await tab.close();
});
