// Lists all three kinds of products with the official SDK, once per round, for each client of a plan.
//
// The plan is a JSON object on the standard input: the project's id, and how each client is built. Both SDKs under
// test take the same plan; tests/sdk/mod.rs has its fields. Prints "call " and a JSON object for each call.
//
// npm has no package for Workspace, so the requests are put together here as those packages do it.
"use strict";

const { readFileSync } = require("node:fs");
const { join } = require("node:path");
// Not beside this file: the directory is named by whoever runs it.
const core = (part) => require(join(process.env.NODE_MODULES, "@huaweicloud/huaweicloud-sdk-core", part));
const { BasicCredentials } = core("auth/BasicCredentials");
const { ClientBuilder } = core("ClientBuilder");
const { ServiceResponseException } = core("exception/ServiceResponseException");

// Whatever hangs is ended.
setTimeout(() => process.exit(1), 50_000).unref();

const plan = JSON.parse(readFileSync(0, "utf8"));
const OPERATIONS = [
    ["ListProducts", "workspace", "/v2/{project_id}/products", { os_type: "Linux", limit: 100 }],
    ["ListSharerProducts", "workspace", "/v2/{project_id}/products/sharer", {}],
    ["ListProduct", "appstream", "/v1/{project_id}/product", {}],
];

function build(client, endpoint, remember) {
    const credentials = new BasicCredentials().withAk(client.id).withSk(client.secret);
    credentials.withProjectId(plan.project_id);
    if (client.security_token) {
        credentials.withSecurityToken(client.security_token);
    }
    // Headers are shown to nobody else.
    const transformResponse = [(data, headers) => remember({ ...headers }) ?? JSON.parse(data)];
    const builder = new ClientBuilder((built) => built).withCredential(credentials).withEndpoint(endpoint);
    return builder.withOptions({ axiosRequestConfig: { transformResponse } }).build();
}

async function call(client, [operation, service, url, queryParams]) {
    const result = { client: client.name, operation, headers: {} };
    const built = build(client, client[service], (headers) => void (result.headers = headers));
    const headers = client.token === null ? {} : { "X-Auth-Token": client.token };
    const options = { method: "GET", url, contentType: "application/json", queryParams, pathParams: {}, headers };
    try {
        const response = await built.sendRequest(options);
        result.status = response.httpStatusCode;
        result.products = response.products.map((product) => product.product_id);
    } catch (error) {
        if (!(error instanceof ServiceResponseException) || !error.httpStatusCode) {
            throw error;
        }
        result.status = error.httpStatusCode;
        result.error = {
            type: error.name,
            code: error.errorCode,
            message: error.errorMsg,
            request_id: error.requestId,
        };
    }
    console.log("call " + JSON.stringify(result));
}

async function run() {
    for (const client of plan.clients) {
        for (let round = 0; round < client.rounds; round += 1) {
            for (const operation of OPERATIONS) {
                await call(client, operation);
            }
        }
    }
}

run().catch((error) => {
    console.error(error);
    process.exit(1);
});
