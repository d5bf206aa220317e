"""Lists all three kinds of products with the official SDK, once per round, for each client of a plan.

The plan is a JSON object on the standard input: the project's id, and how each client is built. Both SDKs under
test take the same plan; tests/sdk/mod.rs has its fields. Prints "call " and a JSON object for each call.
"""

import faulthandler
import json
import sys
from urllib.parse import urlsplit

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ServiceResponseException
from huaweicloudsdkcore.http.http_handler import HttpHandler
from huaweicloudsdkworkspace.v2 import (
    ListProductsRequest,
    ListSharerProductsRequest,
    WorkspaceAsyncClient,
    WorkspaceClient,
)
from huaweicloudsdkworkspace.v2.region.workspace_region import WorkspaceRegion
from huaweicloudsdkworkspaceapp.v1 import ListProductRequest, WorkspaceAppAsyncClient, WorkspaceAppClient
from huaweicloudsdkworkspaceapp.v1.region.workspaceapp_region import WorkspaceAppRegion

# Ends a run that hangs and shows where it hangs. The SDK's own timeout is two minutes.
faulthandler.dump_traceback_later(50, exit=True)

plan = json.load(sys.stdin)
headers = {}


def remember_headers(response, **_):
    """The SDK's models have no headers, but its handlers get them."""
    path = urlsplit(response.request.url).path
    headers[path] = {name.lower(): value for name, value in response.headers.items()}


def build(kind, regions, client, endpoint):
    credentials = BasicCredentials(client["id"], client["secret"]).with_project_id(plan["project_id"])
    if client["security_token"]:
        credentials = credentials.with_security_token(client["security_token"])
    builder = kind.new_builder().with_credentials(credentials)
    builder = builder.with_http_handler(HttpHandler().add_response_handler(remember_headers))
    # Without an endpoint the SDK reads the variables HUAWEICLOUD_SDK_REGION_WORKSPACE_CN_NORTH_4 and …_WORKSPACEAPP_….
    builder = builder.with_endpoint(endpoint) if endpoint else builder.with_region(regions.value_of("cn-north-4"))
    built = builder.build()
    if client["token"] is not None:
        built.preset_headers["X-Auth-Token"] = client["token"]
    if not client["signs"]:
        built.preset_headers["Authorization"] = ""
    return built


def show(client, operation, path, answer):
    result = {"client": client["name"], "operation": operation}
    try:
        response = answer()
        result["status"] = response.status_code
        result["products"] = [product.product_id for product in response.products]
    except ServiceResponseException as error:
        result["status"] = error.status_code
        result["error"] = {
            "type": type(error).__name__,
            "code": error.error_code,
            "message": error.error_msg,
            "request_id": error.request_id,
        }
    # For a 429 the SDK reads only the status.
    result["headers"] = headers.pop(path.replace("PROJECT", plan["project_id"]), {})
    print("call " + json.dumps(result), flush=True)


def run(client):
    is_async = client["style"] == "async"
    kinds = (WorkspaceAsyncClient, WorkspaceAppAsyncClient) if is_async else (WorkspaceClient, WorkspaceAppClient)
    workspace = build(kinds[0], WorkspaceRegion, client, client["workspace"])
    app = build(kinds[1], WorkspaceAppRegion, client, client["appstream"])
    products, sharers = ListProductsRequest(os_type="Linux", limit=100), ListSharerProductsRequest()
    operations = [
        ("ListProducts", "/v2/PROJECT/products", workspace, "list_products", products),
        ("ListSharerProducts", "/v2/PROJECT/products/sharer", workspace, "list_sharer_products", sharers),
        ("ListProduct", "/v1/PROJECT/product", app, "list_product", ListProductRequest()),
    ]
    for _ in range(client["rounds"]):
        if is_async:
            # All requests are sent before the first response is awaited.
            pending = [getattr(built, name + "_async")(request) for _, _, built, name, request in operations]
            for (operation, path, *_), future in zip(operations, pending):
                show(client, operation, path, future.result)
        else:
            for operation, path, built, name, request in operations:
                show(client, operation, path, lambda: getattr(built, name)(request))


for client in plan["clients"]:
    run(client)
