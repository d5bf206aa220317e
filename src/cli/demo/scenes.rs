//! What the demo plays: who asks for what, in what weather, and what should come of it.

use std::time::Duration;

use http::StatusCode;

/// How many ask at once in a stampede.
pub(super) const STAMPEDE: usize = 200;

/// Lives short enough for an audience. In the second half time passes, and upstream fails.
pub(super) const SETTINGS: &str = r#"
[cache]
ttl_jitter = "0%"
negative_ttl = "1s"
backoff = "1s"
stale_if_slow = "400ms"

[[operation]]
name = "ListSharerProducts"
ttl = "1500ms"
stale_while_revalidate = "1s"
"#;

/// Who asks.
#[derive(Clone, Copy)]
pub(super) enum Who {
    First,
    Second,
    /// These two by turns.
    Both,
    /// Somebody with a good token, to whom upstream has not answered anything yet.
    Newcomer,
    /// Somebody with a bad token.
    Stranger,
    /// Somebody who signs with an access key that the gateway knows.
    Signer,
    /// Somebody who signs with one that it doesn't.
    UnknownSigner,
}

/// What upstream is like from then on.
#[derive(Clone, Copy)]
pub(super) enum Weather {
    /// As it was before.
    Same,
    /// It answers as ever.
    Fine,
    /// It answers 503.
    Down,
    /// It answers 429, and wishes not to be asked for so many seconds.
    Throttled(u32),
    /// It takes so long.
    Slow(Duration),
}

/// One scene: what is asked, by whom, how often at once, and what should come of it.
pub(super) struct Scene {
    pub(super) path: &'static str,
    pub(super) query: &'static str,
    pub(super) note: &'static str,
    pub(super) weather: Weather,
    /// How much later it is, in milliseconds.
    pub(super) later: u64,
    pub(super) at_once: usize,
    pub(super) who: Who,
    pub(super) expected_status: StatusCode,
    /// The query that upstream should be asked, once; nothing if it should not be asked at all.
    pub(super) asks: Option<&'static str>,
}

const PRODUCTS: &str = "/v2/PROJECT/products";
const SHARER: &str = "/v2/PROJECT/products/sharer";
const PRODUCT: &str = "/v1/PROJECT/product";

fn scene(path: &'static str, query: &'static str, note: &'static str, asks: Option<&'static str>) -> Scene {
    Scene {
        path,
        query,
        note,
        weather: Weather::Same,
        later: 0,
        at_once: 1,
        who: Who::First,
        expected_status: StatusCode::OK,
        asks,
    }
}

/// All scenes, in their order.
pub(super) fn all() -> Vec<Scene> {
    let mut scenes = fine_weather();
    scenes.extend(bad_weather());
    scenes
}

fn fine_weather() -> Vec<Scene> {
    let second = |query, note, asks| Scene { who: Who::Second, ..scene(PRODUCTS, query, note, asks) };
    let stampede =
        |note, asks| Scene { at_once: STAMPEDE, who: Who::Both, ..scene(PRODUCTS, "architecture=arm", note, asks) };
    let refused = |note, asks| Scene {
        who: Who::Stranger,
        expected_status: StatusCode::UNAUTHORIZED,
        ..scene(PRODUCTS, "os_type=Linux", note, asks)
    };
    let signer = |who, note, asks| Scene { who, ..scene(PRODUCTS, "os_type=Linux", note, asks) };
    vec![
        scene(PRODUCTS, "os_type=Linux", "the first time", Some("os_type=Linux")),
        scene(PRODUCTS, "os_type=Linux", "the same again", None),
        scene(PRODUCTS, "limit=100&offset=0&os_type=Linux", "the defaults spelt out", None),
        scene(PRODUCTS, "os_type=Windows&charge_mode=1", "another question", Some("charge_mode=1&os_type=Windows")),
        scene(PRODUCTS, "charge_mode=1&os_type=Windows", "in another order", None),
        scene(PRODUCT, "os_type=&package_type=general", "the first time", Some("package_type=general")),
        scene(PRODUCT, "package_type=general", "no empty parameter", None),
        second("os_type=Linux", "a second caller is proved", Some("os_type=Linux")),
        second("charge_mode=1&os_type=Windows", "and shares what is there", None),
        stampede("200 of both, the first time", Some("architecture=arm")),
        stampede("200 of both, again", None),
        refused("a bad token: upstream's 401", Some("os_type=Linux")),
        refused("the same, a moment later", None),
        signer(Who::Signer, "signed (AK/SK), known key", Some("os_type=Linux")),
        signer(Who::Signer, "signed again", None),
        Scene {
            expected_status: StatusCode::UNAUTHORIZED,
            ..signer(Who::UnknownSigner, "with a key unknown here", None)
        },
    ]
}

fn bad_weather() -> Vec<Scene> {
    const QUERY: &str = "is_gpu=0";
    let after = |later, weather, note, asks: bool| Scene {
        later,
        weather,
        ..scene(SHARER, QUERY, note, asks.then_some(QUERY))
    };
    let newcomer = Scene {
        who: Who::Newcomer,
        expected_status: StatusCode::SERVICE_UNAVAILABLE,
        ..after(0, Weather::Same, "one who was never proved", true)
    };
    vec![
        after(0, Weather::Same, "the first time", true),
        after(1_600, Weather::Same, "1.6 s later: stale, so …", true),
        after(300, Weather::Same, "… it was asked for again", false),
        after(2_600, Weather::Down, "an outage: 503", true),
        after(0, Weather::Same, "again: upstream is spared", false),
        newcomer,
        after(1_100, Weather::Fine, "the outage is over", true),
        after(2_600, Weather::Throttled(1), "429, Retry-After: 1", true),
        after(0, Weather::Same, "again: upstream is spared", false),
        after(1_100, Weather::Fine, "a second later", true),
        after(2_600, Weather::Slow(Duration::from_millis(700)), "700 ms are too slow, …", true),
        after(500, Weather::Fine, "… but were not in vain", false),
    ]
}
