//! Which settings are allowed, how layers combine, and the errors.

use super::*;
use crate::catalogue::Service;

fn error(text: &str) -> String {
    Config::from_layers("test.toml", text, &[]).unwrap_err().to_string()
}

fn given(path: &'static [&'static str], value: &str) -> Override {
    Override { path, value: value.into(), origin: format!("--{}", path.join("-")) }
}

#[test]
fn an_error_names_the_layer_that_caused_it() {
    let region = given(&["region"], "r");
    for text in [
        "[[operation]]\nname = \"Foo\"",
        "[listen]\ncert_file = \"/x\"",
        "[cache]\nmax_body_size = \"1GiB\"",
        "[listen]\nproxy = \"0.0.0.0:1\"",
    ] {
        let error = Config::from_layers("file.toml", text, std::slice::from_ref(&region)).unwrap_err().to_string();
        assert!(error.starts_with("file.toml: "), "{error}");
    }
    let address = given(&["listen", "proxy"], "0.0.0.0:1");
    let error = Config::from_layers("file.toml", "", &[address, region]).unwrap_err().to_string();
    assert!(error.starts_with("--listen-proxy: listen.proxy: "), "{error}");
}

#[test]
fn the_region_is_the_only_required_setting() {
    let config = Config::from_layers("f", "", &[given(&["region"], "cn-north-4")]).unwrap();
    let origin = |service| config.catalogue.origin(service).to_string();
    assert_eq!(origin(Service::Workspace), "https://workspace.cn-north-4.myhuaweicloud.com");
    assert_eq!(origin(Service::AppStream), "https://appstream.cn-north-4.myhuaweicloud.com");
    assert_eq!(config.settings.listen.proxy.to_string(), "127.0.0.1:8080");
}

#[test]
fn an_override_takes_precedence_over_the_file_and_the_file_over_the_default() {
    let text = "region = \"r\"\n[listen]\nproxy = \"127.0.0.1:1\"\nmetrics = \"127.0.0.1:2\"";
    let config = Config::from_layers("f", text, &[given(&["listen", "proxy"], "127.0.0.1:3")]).unwrap();
    let listen = config.settings.listen;
    assert_eq!(
        [listen.proxy, listen.metrics, listen.admin].map(|address| address.to_string()),
        ["127.0.0.1:3", "127.0.0.1:2", "127.0.0.1:9091"]
    );
}

#[test]
fn the_printed_configuration_can_be_read_back() {
    let text = "region = \"r\"\n[[operation]]\nname = \"ListProduct\"\nttl = \"1h 30m\"\n[[operation]]\nname = \"Zones\"\n\
                path = \"/v2/{project_id}/zones/{id}\"\nforward_headers = [\"tracestate\"]\n\
                defaults = { limit = \"10\" }\nbody = \"field:zones\"\nstale_if_error = \"0s\"\n[cache]\nmax_size = \"100MiB\"";
    let config = Config::from_layers("f", text, &[]).unwrap();
    let again = Config::from_layers("f", &config.to_toml(), &[]).unwrap();
    assert_eq!(config.settings, again.settings);
    let ttl =
        |name: &str| config.catalogue.operations().iter().find(|operation| *operation.name == *name).map(|o| o.ttl);
    assert_eq!(ttl("ListProduct"), Some(std::time::Duration::from_secs(5400)));
    assert_eq!(ttl("ListProducts"), Some(std::time::Duration::from_secs(300)));
}

#[test]
fn the_region_can_be_overridden_over_a_printed_configuration() {
    let config = Config::from_layers("f", "region = \"r-1\"", &[]).unwrap();
    let moved = Config::from_layers("f", &config.to_toml(), &[given(&["region"], "r-2")]).unwrap();
    assert!(moved.catalogue.origin(Service::Workspace).to_string().contains(".r-2."));
    assert!(moved.to_toml().contains("# upstream of workspace: https://workspace.r-2.myhuaweicloud.com"));
}

#[test]
fn errors_name_the_setting_the_value_and_what_is_allowed() {
    for (text, expected) in [
        ("", &["region", "--region cn-north-4"][..]),
        ("region = \"x\"\nmode = \"on\"", &["mode", "\"on\"", "cache or bypass"]),
        ("region = \"x\"\nmode = true", &["mode", "`true`", "cache or bypass"]),
        ("region = \"x\"\nlisten = \"y\"", &["listen: (not shown", "a table of settings"]),
        ("region = \"CN North\"", &["region", "CN North", "a-z 0-9 -"]),
        ("region = \"x\"\nmood = 1", &["unknown field `mood`", "`mode`"]),
        ("region = \"x\"\n[listen]\nprox = \"y\"", &["listen", "`prox`", "`proxy`"]),
        ("region = \"x\"\n[cache]\nttl = 300", &["cache.ttl", "300", "\"5m\""]),
        ("region = \"x\"\n[cache]\nttl = \"300\"", &["cache.ttl", "300", "\"5m\""]),
        ("region = \"x\"\n[cache]\nttl = \"0s\"", &["cache.ttl", "0s", "1ms"]),
        ("region = \"x\"\n[cache]\nttl = \"2000y\"", &["cache.ttl", "2000y", "a year"]),
        ("region = \"x\"\n[cache]\nmax_size = \"64\"", &["cache.max_size", "64", "\"64MiB\""]),
        ("region = \"x\"\n[cache]\nmax_size = \"1MiB\"", &["cache.max_body_size", "at most cache.max_size"]),
        ("region = \"x\"\n[fleet]\nbudget = \"9ms\"", &["fleet.budget", "9ms", "from 1ms to 8ms"]),
        ("region = \"x\"\n[fleet]\nbudget = \"0s\"", &["fleet.budget", "0s", "from 1ms to 8ms"]),
        ("region = \"x\"\n[fleet]\nmax_body_size = \"9MiB\"", &["fleet.max_body_size", "9MiB", "from 1B to 8MiB"]),
        ("region = \"x\"\n[fleet]\nmax_body_size = 0", &["fleet.max_body_size", "0", "from 1B to 8MiB"]),
        (
            "region = \"x\"\n[fleet]\nengine = \"redis://:swordfish@a\"",
            &["fleet.engine: a password is not allowed in the URL", "set fleet.password"],
        ),
        ("region = \"x\"\n[fleet]\nengine = \"swordfish\"", &["fleet.engine: is no URL", "rediss-sentinel://"]),
        ("region = \"x\"\n[fleet]\nengine = \"redis://a:99999\"", &["fleet.engine: the port 99999"]),
        ("region = \"x\"\n[fleet]\ngrants = \"no\"", &["fleet.grants: ", "\"no\"", "expected true or false"]),
        ("region = \"x\"\n[fleet]\ninsecure_plaintext = \"yes\"", &["\"yes\"", "expected true or false"]),
        (
            "region = \"x\"\n[fleet]\nengine = \"redis://127.0.0.1\"\nsecret = \"/run/secrets/workspace-gateway/fleet\"",
            &["fleet.secret: (not shown", "is a path", "{ file = "],
        ),
        ("region = \"x\"\n[fleet]\nname = \"sword fish\"", &["fleet.name: (not shown", "1 to 32 of A-Z"]),
        ("region = \"x\"\n[cache]\nkeyed_headers = [\"a b\"]", &["cache.keyed_headers[0]", "a b", "name of a header"]),
        (
            "region = \"x\"\n[cache]\nkeyed_headers = [\"X-Auth-Token\"]",
            &["keyed_headers[0]", "X-Auth-Token", "no credential"],
        ),
        (
            "region = \"x\"\n[cache]\nkeyed_headers = \"x-language\"",
            &["cache.keyed_headers: ", "string \"x-language\"", "expected a list such as [\"x-language\"]"],
        ),
        ("region = \"x\"\n[cache]\nkeyed_headers = [\"via\"]", &["keyed_headers[0]", "via"]),
        ("region = \"x\"\n[cache]\nkeyed_headers = [\"x-a\", \"X-A\"]", &["keyed_headers", "x-a", "each header once"]),
        ("region = \"x\"\n[listen]\nproxy = \"localhost\"", &["listen.proxy", "localhost", "127.0.0.1:8080"]),
        (
            "region = \"x\"\n[listen]\npath_prefixes = [\"/a\", \"b\"]",
            &["listen.path_prefixes[1]", "\"b\" is not", "\"/workspace\""],
        ),
        ("region = \"x\"\n[listen]\nadmin = \"0.0.0.0:9091\"", &["listen.admin", "0.0.0.0:9091", "loopback"]),
        (
            "region = \"x\"\n[listen]\nproxy = \"0.0.0.0:8080\"",
            &["listen.proxy", "\"0.0.0.0:8080\"", "loopback", "listen.cert_file", "insecure_plaintext = true"],
        ),
        (
            "region = \"x\"\n[listen]\nproxy = \"[::ffff:127.0.0.1]:1\"\ninsecure_plaintext = false",
            &["listen.proxy", "\"[::ffff:127.0.0.1]:1\"", "loopback"],
        ),
        (
            "region = \"x\"\n[listen]\ninsecure_plaintext = \"yes\"",
            &["listen.insecure_plaintext", "\"yes\"", "true or false"],
        ),
        ("region = \"x\"\n[listen]\ninsecure_plaintext = 1", &["insecure_plaintext", "`1`", "true or false"]),
        ("region = \"x\"\n[listen]\ncert_file = \"c.pem\"", &["listen.cert_file", "c.pem", "listen.key_file"]),
        ("region = \"x\"\n[listen]\nkey_file = \"k.pem\"", &["listen.key_file", "not shown", "listen.cert_file"]),
        (
            "region = \"x\"\n[listen]\nclient_ca_file = \"a.pem\"",
            &["listen.client_ca_file", "a.pem", "listen.cert_file and listen.key_file"],
        ),
        ("region = \"x\"\n[listen]\nadmin = \"127.0.0.1:8080\"", &["listen.admin", "8080", "listen.proxy"]),
        ("region = \"x\"\n[upstream]\nworkspace_url = \"ftp://x\"", &["upstream.workspace_url", "ftp://x", "http"]),
        ("region = \"x\"\n[upstream]\nworkspace_url = \"https://x/y\"", &["upstream.workspace_url", "no path"]),
        (
            "region = \"x\"\n[upstream]\nanswer_timeout = \"20s\"",
            &["upstream.answer_timeout: \"20s\"", "at least upstream.first_byte_timeout, \"32s\""],
        ),
        (
            "region = \"x\"\n[upstream]\nfirst_byte_timeout = \"2s\"",
            &["upstream.first_byte_timeout: \"2s\"", "at least upstream.connect_timeout, \"3s\""],
        ),
        ("region = \"x\"\n[cache]\nstale_if_error = \"0\"", &["cache.stale_if_error", "\"0\"", "from 0s"]),
        ("region = \"x\"\n[grants]\non_outage = \"x\"", &["grants.on_outage", "\"x\"", "serve or refuse"]),
        ("region = \"x\"\n[grants]\nmax_grants = 0", &["grants.max_grants", "0", "from 1 to 1000000"]),
        ("region = \"x\"\n[limits]\nmax_waiters = \"9\"", &["limits.max_waiters", "9", "a number from 1"]),
        ("region = \"x\"\n[log]\nlevel = \"loud\"", &["log.level", "loud", "error, warn, info, debug or trace"]),
        ("region = \"x\"\n[log]\naccess = \"some\"", &["log.access", "some", "all, slow-and-failed or off"]),
        ("region = ", &["test.toml", "line 1"]),
    ] {
        let message = error(text);
        for part in expected {
            assert!(message.contains(part), "{text:?}: {message:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_syntax_error_shows_its_position_and_never_the_text_there() {
    // The misspelled setting may be a secret.
    for (line, place) in [
        ("secert = \"hush", "line 3, column 15: "),
        ("sk = hush", "line 3, column 6: "),
        ("\"ä\" = hush", "line 3, column 7: "),
        ("hush", "line 3, column 5: "),
        ("hush = 1\n\nhush = 2", "line 5, column 1: duplicate key"),
    ] {
        let message = error(&format!("region = \"r\"\n[[acces_key]]\n{line}"));
        assert!(message.starts_with(&format!("test.toml: not TOML: {place}")), "{message}");
        assert!(!message.contains("hush") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn the_error_of_an_override_names_its_flag_or_variable() {
    let wrong = [given(&["region"], "r"), given(&["listen", "proxy"], "8080")];
    let message = Config::from_layers("f", "", &wrong).unwrap_err().to_string();
    assert!(message.starts_with("--listen-proxy: listen.proxy: "), "{message}");
    // So is the error of a value that is wrong only together with other settings.
    let wrong = [given(&["listen", "admin"], "0.0.0.0:1"), given(&["region"], "r"), given(&["mode"], "cache")];
    let message = Config::from_layers("f", "region = \"r\"", &wrong).unwrap_err().to_string();
    assert!(message.starts_with("--listen-admin: listen.admin: "), "{message}");
}

#[test]
fn plaintext_beyond_loopback_needs_the_setting_that_allows_it() {
    let accepted = |text: &str| Config::from_layers("f", &format!("region = \"r\"\n[listen]\n{text}"), &[]).is_ok();
    for proxy in ["proxy = \"0.0.0.0:1\"\n", "proxy = \"[::]:1\"\n", "proxy = \"192.0.2.1:1\"\n"] {
        assert!(!accepted(proxy));
        assert!(accepted(&format!("{proxy}insecure_plaintext = true")));
        assert!(accepted(&format!("{proxy}cert_file = \"c\"\nkey_file = \"k\"")));
    }
    for proxy in ["proxy = \"127.1.2.3:1\"", "proxy = \"[::1]:1\"", "metrics = \"0.0.0.0:1\""] {
        assert!(accepted(proxy), "{proxy}");
    }
    let flags = [given(&["listen", "proxy"], "0.0.0.0:1"), given(&["listen", "insecure_plaintext"], "true")];
    assert!(Config::from_layers("f", "region = \"r\"", &flags).unwrap().settings.listen.insecure_plaintext.0);
    // The address of the admin listener is checked, too.
    let listen = Config::from_layers("f", "region = \"r\"", &[]).unwrap().settings.listen;
    let [here, there] = ["127.0.0.1:1", "192.0.2.1:1"].map(|address| address.parse().unwrap());
    assert_eq!(listen.check_addresses(here, here), Ok(()));
    assert!(listen.check_addresses(here, there).unwrap_err().starts_with("listen.admin: \"192.0.2.1:1\""));
}

#[test]
fn a_fleet_needs_a_secret_and_beyond_this_machine_tls() {
    let fleet = |text: &str| Config::from_layers("f", &format!("region = \"r\"\n[fleet]\n{text}"), &[]);
    let secret = "secret = \"0123456789abcdef0123456789abcdef\"";
    for (text, expected) in [
        ("engine = \"redis://127.0.0.1\"".to_owned(), "fleet.secret: is missing"),
        ("engine = \"redis://127.0.0.1\"\nsecret = \"short\"".to_owned(), "fleet.secret: is too short"),
        (format!("engine = \"redis://user@127.0.0.1\"\n{secret}"), "fleet.password: is missing"),
        (
            format!("engine = \"rediss://e.example\"\ncert_file = \"/c\"\n{secret}"),
            "is not allowed alone: expected fleet.key",
        ),
        (
            format!("engine = \"rediss://e.example\"\nkey_file = \"/k\"\n{secret}"),
            "is not allowed alone: expected fleet.cert",
        ),
        (format!("engine = \"redis://127.0.0.1\"\nca_file = \"/c\"\n{secret}"), "expected a fleet.engine with TLS"),
        (format!("engine = \"redis://e.example\"\n{secret}"), "is not allowed in plaintext"),
    ] {
        let error = fleet(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    for engine in ["redis://localhost", "redis://[::1]", "rediss://e.example"] {
        let config = fleet(&format!("engine = \"{engine}\"\n{secret}")).unwrap();
        assert!(!format!("{config:?}").contains("0123456789abcdef"), "the secret is not shown");
    }
    fleet(&format!("engine = \"redis://e.example\"\ninsecure_plaintext = true\n{secret}")).unwrap();
}

/// All error messages of a text.
fn errors(text: &str) -> Vec<String> {
    let error = Config::from_layers("f", &format!("region = \"r\"\n{text}"), &[]).unwrap_err();
    error.each().iter().map(ToString::to_string).collect()
}

#[test]
fn errors_of_neighbouring_settings_are_all_reported_with_their_positions() {
    let operation = |name: &str, rest: &str| {
        format!("[[operation]]\nname = \"{name}\"\npath = \"/v1/{name}\"\nbody = \"json\"\n{rest}\n")
    };
    let key = |id: &str, rest: &str| format!("[[access_key]]\nid = \"{id}\"\nsecret = \"s\"\n{rest}\n");
    for (text, expected) in [
        (
            "[cache]\nkeyed_headers = [\"a b\", \"c d\", \"x-a\", \"e f\"]\nttl = \"x\"\n".to_owned(),
            &[
                ("cache.keyed_headers[0]: ", "line 3, column 18"),
                ("cache.keyed_headers[1]: ", "line 3, column 25"),
                ("cache.keyed_headers[3]: ", "line 3, column 39"),
                ("cache.ttl: ", "line 4, column 1"),
            ][..],
        ),
        (
            operation("A", "ttl = \"x\"") + &operation("B", "ttl = \"x\"") + &operation("C", "ttl = \"x\""),
            &[
                ("operation.A.ttl: ", "line 6, column 1"),
                ("operation.B.ttl: ", "line 11, column 1"),
                ("operation.C.ttl: ", "line 16, column 1"),
            ],
        ),
        (
            operation("A", "ttl = \"x\"") + &operation("A", "ttl = \"y\""),
            &[
                ("operation.A.ttl: invalid value: string \"x\"", "line 6, column 1"),
                ("operation.A.ttl: invalid value: string \"y\"", "line 11, column 1"),
                ("operation.A: the name appears twice", "line 2, column 1"),
            ],
        ),
        (
            key("A", "projects = [\"/\", \"p\", \"/\"]") + &key("a b", "") + &key("B", "projects = [\"/\"]\nmore = 1"),
            &[
                ("access_key.A.projects[0]: ", "line 5, column 13"),
                ("access_key.A.projects[2]: ", "line 5, column 23"),
                ("access_key[1].id: ", "line 7, column 1"),
                ("access_key.B.projects[0]: ", "line 13, column 13"),
                ("access_key.B: unknown field (not shown", "line 14, column 1"),
            ],
        ),
        (
            "[cache]\nt = 1\nu = 1\n[grants]\nt = 1\n".to_owned(),
            &[
                ("cache.t: unknown field `t`", "line 3, column 1"),
                ("cache.u: unknown field `u`", "line 4, column 1"),
                ("grants.t: unknown field `t`", "line 6, column 1"),
            ],
        ),
    ] {
        let errors = errors(&text);
        for (words, place) in expected {
            let matches =
                |error: &&String| error.starts_with(&format!("f: {words}")) && error.ends_with(&format!(" ({place})"));
            assert_eq!(errors.iter().filter(matches).count(), 1, "{words} {place}: {errors:#?}");
        }
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    }
}

#[test]
fn an_unknown_name_is_reported_with_the_nearest_known_name() {
    for (text, expected) in [
        ("mood = 1", "f: mood: unknown field `mood` (did you mean `mode`?), expected one of `mode`, "),
        ("[listen]\nprox = \"y\"", "f: listen.prox: unknown field `prox` (did you mean `proxy`?), expected one of "),
        (
            "[cache]\nmax_sise = \"y\"\nmax_sisse = \"y\"",
            "f: cache.max_sise: unknown field `max_sise` (did you mean `max_size`?)",
        ),
        (
            "[cache]\nnothing_like_it = \"y\"",
            "f: cache.nothing_like_it: unknown field `nothing_like_it`, expected one of ",
        ),
    ] {
        let errors = errors(text);
        assert!(errors[0].starts_with(expected), "{errors:#?}");
    }
}

#[test]
fn an_old_name_is_refused_with_the_new_name() {
    for (text, expected) in [
        (
            "[cache]\npatience = \"1s\"",
            "f: cache.patience: unknown field `patience`: it was renamed to `stale_if_slow`",
        ),
        (
            "[cache]\nerror_ttl = \"1s\"",
            "f: cache.error_ttl: unknown field `error_ttl`: it was renamed to `negative_ttl` (for 400, 404 and \
             405) and `backoff` (after a failed call)",
        ),
        (
            "[limits]\nhead_timeout = \"1s\"",
            "f: limits.head_timeout: unknown field `head_timeout`: it was renamed to `header_timeout`",
        ),
        (
            "[limits]\ndrain_timeout = \"1s\"",
            "f: limits.drain_timeout: unknown field `drain_timeout`: it was renamed to `shutdown_timeout`",
        ),
    ] {
        let errors = errors(text);
        assert!(errors.len() == 1 && errors[0].starts_with(&format!("{expected} (line ")), "{errors:#?}");
    }
}

/// The number of lines of a file is not limited.
#[test]
fn of_many_errors_the_first_are_reported() {
    let many = |number: usize, line: &dyn Fn(usize) -> String| (0..number).map(line).collect::<String>();
    for text in [
        many(60_000, &|number| format!("no_such_{number:05} = 1\n")),
        many(500, &|number| format!("[[operation]]\nname = \"O{number}\"\nttl = \"x\"\n")),
        many(500, &|number| format!("[[access_key]]\nid = \"AK{number}\"\nsecret = \"\"\n")),
    ] {
        let number = errors(&text).len();
        assert!((50..=51).contains(&number), "{number}");
    }
}
