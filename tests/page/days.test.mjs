// The page on bad days: the real program with simulated services that fail. The banner names the cause, on a desktop and on
// a phone. With SCREENSHOTS=DIR, pictures of the first screen are written to that directory.
//
// WORKSPACE_GATEWAY_TEST_PROGRAM is the path of the program. WORKSPACE_GATEWAY_TEST_EXPIRED is a folder with an expired
// certificate for localhost (tls.crt), its key (tls.key) and its authority (ca.pem).

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { DESKTOP, PHONE, Tab, launch } from "./support.mjs";

const program = process.env.WORKSPACE_GATEWAY_TEST_PROGRAM;
const expired = process.env.WORKSPACE_GATEWAY_TEST_EXPIRED;
assert.ok(program && expired, "WORKSPACE_GATEWAY_TEST_PROGRAM and WORKSPACE_GATEWAY_TEST_EXPIRED are set");

const LIST = "/v2/00000000000000000000000000000001/products";
const ANY = "127.0.0.1:0";
// Nothing listens on port 1.
const NOWHERE = "127.0.0.1:1";

let browser, folder;
before(async () => {
    browser = await launch();
    folder = mkdtempSync(join(tmpdir(), "days-"));
});
after(async () => {
    await browser.close();
    rmSync(folder, { recursive: true });
});

/** Starts the program, and returns what it prints up to a line that matches. Afterwards nobody reads the stream. */
function start(day, stream, args, line) {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
    const ended = new Promise((done) => child.on("exit", done));
    day.after(() => child.kill("SIGKILL") && ended);
    const other = stream === "stdout" ? "stderr" : "stdout";
    child[other].resume();
    return new Promise((done, failed) => {
        let text = "";
        const read = (piece) => {
            text += piece;
            const found = line.exec(text);
            if (found !== null) {
                child[stream].off("data", read).pause();
                done({ child, found, ended });
            }
        };
        child[stream].setEncoding("utf8").on("data", read);
        child.on("exit", () => failed(new Error(`${args[0]} has ended:\n${text}`)));
    });
}

/** The simulated services. The address of earlier ones may be used again. */
async function simulate(day, faults = [], listen = ANY) {
    const { child, found, ended } = await start(day, "stdout", ["simulate", "--listen", listen, ...faults], /simulated on http:\/\/(\S+)\. /);
    const end = async () => void (child.kill("SIGTERM") && (await ended));
    return { address: found[1], end };
}

/** A gateway with these services, as long as the test runs. */
class Gateway {
    static async start(day, upstream, settings = "", flags = []) {
        const config = join(folder, "config.toml");
        writeFileSync(config, settings);
        const url = upstream.includes("://") ? upstream : `http://${upstream}`;
        const args = ["serve", "--config", config, "--log-format", "json", "--listen", ANY, "--metrics-listen", ANY, "--admin-listen", ANY];
        const { found } = await start(day, "stderr", [...args, "--workspace-url", url, "--appstream-url", url, ...flags], /"message":"ready".*\n/);
        const { proxy, admin } = JSON.parse(`{${found[0].trim()}`);
        const gateway = new Gateway();
        Object.assign(gateway, { proxy: `http://${proxy}`, origin: `http://${admin}`, agent: new http.Agent({ keepAlive: true, maxSockets: 20 }) });
        day.after(() => gateway.agent.destroy());
        return gateway;
    }

    get(path = LIST, token = "simulated-token") {
        return new Promise((done, failed) => {
            const headers = { "X-Auth-Token": token };
            http.get(`${this.proxy}${path}`, { agent: this.agent, headers }, (response) => {
                response.resume().on("end", () => done(response.statusCode)).on("error", failed);
            }).on("error", failed);
        });
    }

    /** So many requests, each for another list. */
    async ask(requests) {
        for (let limit = 1; limit <= requests; limit += 1) {
            await this.get(`${LIST}?limit=${limit}`);
        }
    }
}

const DAYS = {
    outage: ["upstream-failing", async (day) => {
        const good = await simulate(day);
        const gateway = await Gateway.start(day, good.address);
        await gateway.get();
        await good.end();
        await simulate(day, ["--status", "503"], good.address);
        await gateway.ask(5);
        return gateway;
    }],
    throttled: ["throttled", async (day) => {
        const { address } = await simulate(day, ["--quota", "3/1h"]);
        const gateway = await Gateway.start(day, address);
        await gateway.ask(3);
        // Upstream refuses the next call. Then its request waits.
        gateway.get(`${LIST}?limit=4`).catch(() => {});
        return gateway;
    }],
    "wrong-region": ["nothing-accepted", async (day) => {
        const { address } = await simulate(day);
        const gateway = await Gateway.start(day, address);
        for (let caller = 0; caller < 6; caller += 1) {
            assert.equal(await gateway.get(LIST, `token-of-another-region-${caller}`), 401);
        }
        return gateway;
    }],
    "certificate-for-clients": ["certificate-ended", async (day) => {
        const { address } = await simulate(day);
        const files = ["--cert-file", join(expired, "tls.crt"), "--key-file", join(expired, "tls.key")];
        return Gateway.start(day, address, "", files);
    }],
    "certificate-of-upstream": ["upstream-never-answered", async (day) => {
        const [cert, key] = ["tls.crt", "tls.key"].map((name) => readFileSync(join(expired, name)));
        const upstream = https.createServer({ cert, key }, (_, response) => response.end("{}"));
        await new Promise((done) => upstream.listen(0, "127.0.0.1", done));
        day.after(() => upstream.close());
        const url = `https://localhost:${upstream.address().port}`;
        const gateway = await Gateway.start(day, url, "", ["--upstream-ca-file", join(expired, "ca.pem")]);
        await gateway.ask(3);
        return gateway;
    }],
    "dead-token": ["denials-repeated", async (day) => {
        const { address } = await simulate(day);
        const gateway = await Gateway.start(day, address);
        await gateway.get();
        for (let round = 0; round < 50; round += 1) {
            assert.equal(await gateway.get(LIST, "dead"), 401);
        }
        return gateway;
    }],
    "full-cache": ["cache-full", async (day) => {
        const { address } = await simulate(day);
        const gateway = await Gateway.start(day, address, "[cache]\nmax_size = \"64KiB\"\nmax_body_size = \"60KiB\"\n");
        await gateway.ask(60);
        return gateway;
    }],
    "stalled-log": ["log-stalled", async (day) => {
        const { address } = await simulate(day);
        const gateway = await Gateway.start(day, address);
        await gateway.get();
        // Nobody reads the log, and each line is long.
        const request = () => gateway.get(`/${"x".repeat(2000)}`);
        for (let round = 0; round < 80; round += 1) {
            await Promise.all(Array.from({ length: 20 }, request));
        }
        return gateway;
    }],
    "engine-away": ["fleet-lost", async (day) => {
        const { address } = await simulate(day);
        const gateway = await Gateway.start(day, address, `[fleet]\nengine = "redis://${NOWHERE}"\nsecret = "${"0123456789abcdef".repeat(2)}"\n`);
        await gateway.ask(3);
        return gateway;
    }],
};

for (const [name, [cause, begin]] of Object.entries(DAYS)) {
    test(`the banner names the cause: ${name}`, async (day) => {
        const gateway = await begin(day);
        for (const [size, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
            const tab = await Tab.open(browser, gateway, { viewport, fakeClock: false });
            await tab.until((wanted) => [...document.querySelectorAll("#conditions .tag")].some((tag) => tag.textContent === wanted), cause);
            const widths = await tab.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
            assert.ok(widths[0] <= widths[1], `${widths[0]} px wide, on ${widths[1]}`);
            assert.ok(await tab.page.locator("#no-conditions").isHidden());
            if (process.env.SCREENSHOTS) {
                await tab.page.screenshot({ path: join(process.env.SCREENSHOTS, `day-${name}-${size}.png`) });
            }
            await tab.close();
        }
    });
}
