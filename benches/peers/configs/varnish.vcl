# Varnish: product lists are kept, keyed by token, target and host, so that no caller is answered what another one was.
# Everything else passes. Sizes of heads and of the workspace are parameters: see peers.py, which fills in @WORDS@, too.

vcl 4.1;

backend origin {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
    .connect_timeout = 3s;
    .first_byte_timeout = 32s;
}

sub vcl_recv {
    if (req.method == "GET" && req.url ~ "/products($|\?)") {
        return (hash);
    }
    return (pass);
}

sub vcl_hash {
    hash_data(req.http.X-Auth-Token);
}
