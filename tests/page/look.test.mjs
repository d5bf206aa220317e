// How the page looks and how it is for screen readers: contrast, names, roles, width. With SCREENSHOTS=DIR it writes
// pictures to that directory.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { HOSTILE, SEVERAL, busy, bypass, entries, fresh, hostile, tailed, unknown } from "./fixtures/status.mjs";
import { AXE, DESKTOP, Gateway, PHONE, Tab, launch } from "./support.mjs";

let browser;
before(async () => void (browser = await launch()));
after(() => browser.close());

/** Unfolds everything. */
async function unfold(tab) {
    await tab.page.locator("#results-details > summary").click();
    await tab.page.locator("#staleness-by-project > summary").click();
    await tab.page.locator("#config > summary").click();
    await tab.until(() => document.getElementById("config-text").textContent !== "");
}

/** Reads the tail, and has a request explained. */
async function follow(tab, gateway) {
    await tab.page.locator("#tail-status").fill("2xx,4xx");
    await tab.page.locator("#tail-start").click();
    await tab.until(() => document.getElementById("tail-note").textContent === "Live.");
    const refused = { result: "miss", miss: "no-grant", detail: "denied", status: 401, total_ms: 211.3, caller: "4be3cf01d2a79c55", user_agent: "nightly-report/2.1" };
    gateway.tails[0].write([tailed(), tailed(refused), tailed({ operation: "workspace", path: "/v1/0123/desktops", result: "pass-through", total_ms: 87 }), tailed()].join(""));
    await tab.until(() => document.querySelectorAll("#tail-rows tbody tr").length === 4);
    await tab.page.locator("#explain-url").fill("/v2/0123456789abcdef/products?limit=100");
    await tab.page.locator("#explain-go").click();
    await tab.until(() => document.getElementById("explain-action").textContent !== "");
}

/** A gateway under load for this many seconds. */
function working(seconds, make = busy) {
    return async (gateway, open) => {
        let uptime = 4711.2 - seconds;
        gateway.status = () => make((uptime += 2));
        gateway.entries = entries(60);
        gateway.total = 1234;
        const tab = await open();
        await tab.state("live");
        await tab.pass(seconds);
        return tab;
    };
}

const STATES = {
    busy: async (gateway, open) => {
        const tab = await working(12)(gateway, open);
        await unfold(tab);
        await follow(tab, gateway);
        return tab;
    },
    fresh: async (gateway, open) => {
        gateway.status = () => fresh();
        const tab = await open();
        await tab.state("live");
        await tab.until(() => !document.getElementById("invitation").hidden);
        return tab;
    },
    failing: working(12, (uptime) => ({ ...busy(uptime, { failing: true }), conditions: SEVERAL })),
    warning: working(12, (uptime) => ({ ...busy(uptime), conditions: SEVERAL.slice(2) })),
    stale: async (gateway, open) => {
        const tab = await working(12, (uptime) => busy(uptime, { failing: true }))(gateway, open);
        gateway.isGone = true;
        await tab.pass(60);
        return tab;
    },
    paused: async (gateway, open) => {
        const tab = await working(20)(gateway, open);
        await tab.page.locator("#pause").click();
        await tab.page.clock.runFor(5000);
        return tab;
    },
    bypass: working(12, bypass),
    unknown: async (gateway, open) => {
        gateway.status = () => unknown();
        const tab = await open();
        await tab.state("live");
        return tab;
    },
    hostile: async (gateway, open) => {
        gateway.status = () => hostile();
        gateway.entries = entries(9, [...HOSTILE, "x".repeat(3000), "y=".repeat(70)]);
        const tab = await open();
        await tab.state("live");
        await unfold(tab);
        return tab;
    },
    locked: async (gateway, open) => {
        gateway.token = "right";
        const tab = await open();
        await tab.state("locked");
        await tab.page.locator("#token").fill("wrong");
        await tab.page.keyboard.press("Enter");
        await tab.until(() => document.getElementById("token-wrong").textContent !== "");
        return tab;
    },
};

for (const [state, reach] of Object.entries(STATES)) {
    for (const scheme of ["light", "dark"]) {
        for (const [size, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
            test(`${state}, ${scheme}, ${size}`, async (t) => {
                const gateway = await Gateway.start();
                t.after(() => gateway.stop());
                const tab = await reach(gateway, async () => {
                    const opened = await Tab.open(browser, gateway, { viewport, scheme, reducedMotion: "reduce" });
                    t.after(() => opened.close());
                    return opened;
                });
                const widths = await tab.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
                assert.ok(widths[0] <= widths[1], `${widths[0]} px wide, on ${widths[1]}`);
                if (process.env.SCREENSHOTS) {
                    await tab.page.evaluate(() => scrollTo(0, 0));
                    await tab.page.screenshot({ path: join(process.env.SCREENSHOTS, `${state}-${scheme}-${size}.png`), fullPage: true });
                }
                // axe needs timers.
                await tab.page.clock.resume();
                await tab.page.evaluate(readFileSync(AXE, "utf8"));
                const { violations, passes } = await tab.page.evaluate(() => window.axe.run(document, { resultTypes: ["violations", "passes"] }));
                const found = violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 120)} ${node.failureSummary}`));
                assert.deepEqual(found, []);
                assert.ok(passes.some(({ id }) => id === "color-contrast"));
            });
        }
    }
}

test("colours that axe does not check have enough contrast: those of charts, signs and CSS content", async (t) => {
    const gateway = await Gateway.start();
    t.after(() => gateway.stop());
    gateway.status = () => busy();
    for (const scheme of ["light", "dark"]) {
        const tab = await Tab.open(browser, gateway, { scheme });
        await tab.state("live");
        const colours = await tab.page.evaluate(() => {
            const style = getComputedStyle(document.documentElement);
            const names = ["ground", "raised", "ink", "soft", "edge", "accent", "bad", "warn", "others", "passed"];
            return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`)]));
        });
        const luminance = (colour) => {
            const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
            const [red, green, blue] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
        };
        const contrast = (one, other) => {
            const [light, dark] = [luminance(one), luminance(other)].sort((first, second) => second - first);
            return (light + 0.05) / (dark + 0.05);
        };
        for (const [name, least] of [["accent", 4.5], ["bad", 4.5], ["warn", 4.5], ["soft", 4.5], ["ink", 7], ["others", 3], ["passed", 3], ["edge", 3]]) {
            for (const ground of ["ground", "raised"]) {
                const found = contrast(colours[name], colours[ground]);
                assert.ok(found >= least, `${scheme}: ${name} on ${ground} is ${found.toFixed(2)}`);
            }
        }
        await tab.close();
    }
});
