"""Lists all three kinds of products with the official SDK, each of them twice.

usage: list_products.py PROJECT_ID ENDPOINT [--no-token] [--no-signature]

ENDPOINT is the gateway's base URL, or "region" to leave the base URL to the SDK, which looks for
HUAWEICLOUD_SDK_REGION_WORKSPACE_CN_NORTH_4 and HUAWEICLOUD_SDK_REGION_WORKSPACEAPP_CN_NORTH_4.
The token is taken from the environment variable TOKEN. Prints one JSON object per call.
"""

import faulthandler
import json
import os
import sys

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.exceptions.exceptions import ServiceResponseException
from huaweicloudsdkcore.http.http_handler import HttpHandler
from huaweicloudsdkworkspace.v2 import ListProductsRequest, ListSharerProductsRequest, WorkspaceClient
from huaweicloudsdkworkspace.v2.region.workspace_region import WorkspaceRegion
from huaweicloudsdkworkspaceapp.v1 import ListProductRequest, WorkspaceAppClient
from huaweicloudsdkworkspaceapp.v1.region.workspaceapp_region import WorkspaceAppRegion

# Whatever hangs is shown and ended; the SDK's own timeout is two minutes.
faulthandler.dump_traceback_later(50, exit=True)

project_id, endpoint, *options = sys.argv[1:]
headers = {}


def remember_headers(response, **_):
    """The SDK's models leave headers out; its handlers see them."""
    headers.clear()
    headers.update({name.lower(): value for name, value in response.headers.items()})


def client(kind, regions):
    # A key is needed even where only the token counts. This one exists nowhere.
    credentials = BasicCredentials("AKEXAMPLE", "sk-example").with_project_id(project_id)
    builder = kind.new_builder().with_credentials(credentials)
    builder = builder.with_http_handler(HttpHandler().add_response_handler(remember_headers))
    if endpoint == "region":
        builder = builder.with_region(regions.value_of("cn-north-4"))
    else:
        builder = builder.with_endpoint(endpoint)
    built = builder.build()
    if "--no-token" not in options:
        built.preset_headers["X-Auth-Token"] = os.environ["TOKEN"]
    if "--no-signature" in options:
        built.preset_headers["Authorization"] = ""
    return built


def call(operation, function, request):
    headers.clear()
    result = {"operation": operation}
    try:
        response = function(request)
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
    result["headers"] = dict(headers)
    print(json.dumps(result), flush=True)


workspace = client(WorkspaceClient, WorkspaceRegion)
app = client(WorkspaceAppClient, WorkspaceAppRegion)
for _ in range(2):
    call("ListProducts", workspace.list_products, ListProductsRequest(os_type="Linux", limit=100))
    call("ListSharerProducts", workspace.list_sharer_products, ListSharerProductsRequest())
    call("ListProduct", app.list_product, ListProductRequest())
