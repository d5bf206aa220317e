// A browser, a server that imitates the gateway's admin listener, and a clock that tests move.
//
// WORKSPACE_GATEWAY_TEST_PAGE_MODULES is the node_modules that `npm ci` makes from this directory. The browser is Debian's
// chromium, or the program in CHROMIUM.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

import { CONFIG, STARTED, entries, fresh, history } from "./fixtures/status.mjs";

const modules = process.env.WORKSPACE_GATEWAY_TEST_PAGE_MODULES;
assert.ok(modules, "WORKSPACE_GATEWAY_TEST_PAGE_MODULES is not set");
const require = createRequire(join(resolve(modules), "page.js"));
const { chromium } = require("playwright-core");
export const AXE = require.resolve("axe-core/axe.min.js");

export const DESKTOP = { width: 1280, height: 900 };
export const PHONE = { width: 360, height: 740 };

const SOURCES = join(import.meta.dirname ?? new URL(".", import.meta.url).pathname, "../../src/admin/page");
const SCRIPTS = ["format.js", "charts.js", "tables.js", "quotas.js", "conditions.js", "callers.js", "tail.js", "explain.js", "page.js"];

/** The document and its Content-Security-Policy, as the gateway makes them. */
function documentAndPolicy() {
    const read = (name) => readFileSync(join(SOURCES, name), "utf8");
    const [style, script] = [read("page.css"), SCRIPTS.map(read).join("")];
    const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
    const html = read("page.html").replace("/*STYLE*/", () => style).replace("/*SCRIPT*/", () => script);
    const policy =
        `default-src 'none'; style-src ${hash(style)}; script-src ${hash(script)}; connect-src 'self'; img-src data:; ` +
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    return { html, policy };
}

/** Imitates the gateway. Tests change its responses. */
export class Gateway {
    status = () => fresh();
    /** The history for the uptime of the latest status, after the sample with this number. */
    history = history;
    #latest = fresh();
    entries = [];
    total = null;
    config = CONFIG;
    token = null;
    isGone = false;
    /** If set, responses wait for this promise. */
    held = null;
    /** The streams of /tail that are open, and the bodies of requests to /explain. */
    tails = [];
    explained = [];
    explanation = { verdict: { action: "from-memory", result: "hit", sentence: "answered from memory: an entry of 12s, fresh for 4m 48s more; this caller has a grant" } };
    /** Open requests. */
    open = 0;
    most = 0;

    static async start() {
        const gateway = new Gateway();
        const { html, policy } = documentAndPolicy();
        gateway.server = createServer((request, response) => void gateway.#answer(request, response, html, policy));
        await new Promise((done) => gateway.server.listen(0, "127.0.0.1", done));
        gateway.origin = `http://127.0.0.1:${gateway.server.address().port}`;
        return gateway;
    }

    async stop() {
        this.server.closeAllConnections();
        await new Promise((done) => this.server.close(done));
    }

    async #answer(request, response, html, policy) {
        const url = new URL(request.url, this.origin);
        if (this.isGone && url.pathname !== "/") {
            request.socket.destroy();
            return;
        }
        const send = (status, type, body, headers = {}) =>
            response.writeHead(status, { "Content-Type": type, "Cache-Control": "no-store", ...headers }).end(body);
        if (url.pathname === "/") {
            send(200, "text/html; charset=utf-8", html, { "Content-Security-Policy": policy });
            return;
        }
        this.open += 1;
        this.most = Math.max(this.most, this.open);
        await this.held;
        this.open -= 1;
        if (this.token !== null && request.headers.authorization !== `Bearer ${this.token}`) {
            send(401, "text/plain; charset=utf-8", "expected Authorization: Bearer with listen.admin_token\n", { "WWW-Authenticate": "Bearer" });
        } else if (url.pathname === "/status") {
            this.#latest = this.status();
            send(200, "application/json", JSON.stringify(this.#latest));
        } else if (url.pathname === "/history" && this.history !== null) {
            send(200, "application/json", JSON.stringify(this.history(this.#latest, Number(url.searchParams.get("after")))));
        } else if (url.pathname === "/cache/entries") {
            const limit = Number(url.searchParams.get("limit") ?? 100);
            const shown = [...this.entries].sort((one, other) => other.hits - one.hits).slice(0, limit);
            send(200, "application/json", JSON.stringify({ total: this.total ?? this.entries.length, entries: shown }));
        } else if (url.pathname === "/tail" && url.searchParams.get("result") === "wrong") {
            send(400, "text/plain; charset=utf-8", "result = \"wrong\" is not allowed: expected some of hit, miss\n");
        } else if (url.pathname === "/tail") {
            response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
            response.write(": requests follow as they end\n\n");
            this.tails.push(response);
        } else if (url.pathname === "/explain" && request.method === "POST") {
            let body = "";
            for await (const piece of request) {
                body += piece;
            }
            this.explained.push(body);
            send(200, "application/json", JSON.stringify(this.explanation));
        } else if (url.pathname === "/config") {
            send(200, "text/plain; charset=utf-8", this.config);
        } else {
            send(404, "text/plain; charset=utf-8", "no such page\n");
        }
    }
}

/** Starts the browser, once for all tests of a file. */
export function launch() {
    return chromium.launch({
        executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
        headless: true,
        args: [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync",
        ],
    });
}

/** A tab with its own clock. It records everything that the page must not do. */
export class Tab {
    /** Errors on the console, and requests to other origins. */
    mistakes = [];
    strangers = [];
    /** The paths of its requests, in order. (The browser repeats a request if a kept connection turns out to be closed.) */
    requests = [];

    static async open(browser, gateway, { viewport = DESKTOP, scheme = "light", fakeClock = true, ...more } = {}) {
        const tab = new Tab();
        tab.gateway = gateway;
        tab.context = await browser.newContext({ viewport, colorScheme: scheme, timezoneId: "Asia/Shanghai", locale: "en-GB", ...more });
        tab.page = await tab.context.newPage();
        tab.page.on("console", (message) => {
            // The browser reports failed requests itself. Tests check what the page shows then.
            if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
                tab.mistakes.push(message.text());
            }
        });
        tab.page.on("pageerror", (error) => tab.mistakes.push(String(error)));
        tab.page.on("request", (request) => {
            tab.requests.push(request.url().slice(gateway.origin.length));
            if (!request.url().startsWith(`${gateway.origin}/`) && !request.url().startsWith("data:")) {
                tab.strangers.push(request.url());
            }
        });
        await tab.page.addInitScript(() => {
            window.violations = [];
            document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
        });
        if (fakeClock) {
            await tab.page.clock.install({ time: STARTED + 4_612_000 });
            await tab.page.clock.pauseAt(STARTED + 4_712_000);
        }
        await tab.page.goto(`${gateway.origin}/`);
        return tab;
    }

    polls() {
        return this.requests.filter((path) => path === "/status").length;
    }

    /** Waits until the function returns true in the page. */
    async until(what, argument) {
        await this.page.waitForFunction(what, argument, { timeout: 15_000 });
    }

    async state(name) {
        await this.until((wanted) => document.body.dataset.state === wanted, name);
    }

    /** Lets time pass, poll by poll. Each poll is shown before the next. */
    async pass(seconds) {
        for (let step = 0; step < seconds / 2; step += 1) {
            const before = this.polls();
            await this.page.clock.runFor(2000);
            await this.settled(before + 1);
        }
    }

    /** Waits until the page has no open poll, and checks the number of polls. */
    async settled(polls) {
        await this.until(() => state.isLoading === false);
        assert.equal(this.polls(), polls);
    }

    text(selector) {
        return this.page.locator(selector).innerText();
    }

    /** The name, exact value and text of every figure on the page. */
    figures() {
        return this.page.evaluate(() =>
            [...document.querySelectorAll("[data-figure]")].map((place) => ({
                name: place.dataset.figure,
                value: JSON.parse(place.dataset.value),
                text: place.textContent,
                title: place.title,
            })));
    }

    async close() {
        const violations = await this.page.evaluate(() => window.violations).finally(() => this.context.close());
        assert.deepEqual({ mistakes: this.mistakes, strangers: this.strangers, violations }, { mistakes: [], strangers: [], violations: [] });
    }
}

export { entries };
