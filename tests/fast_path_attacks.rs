//! The fast path under attack: whatever is sent, and however it is cut, no byte of one thing is taken for another, and
//! every request has its own answer, in order.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Builder;

use crate::support::line::{Heard, Line};
use crate::support::{PROJECT, World, with_fast_path, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux&limit=1";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows&limit=1";

/// What is passed to upstream, whatever it says to that.
const RELAYED: &str = "/v2/PROJECT/desktops";

/// A world in which a head is known, a short one, for it will be cut at each place.
async fn knowing() -> (World, String) {
    let mut world = World::with(&with_fast_path(true, "")).await;
    world.token = world.simulator.token_of_length(PROJECT, 64);
    let known = world.head(LIST, &[]);
    world.learns(&known).await;
    (world, known)
}

fn is_hit(answer: &Heard) -> bool {
    answer.status() == 200 && answer.head.contains("workspace-gateway; hit")
}

/// The head of a POST.
fn post(path: &str, lines: &str) -> String {
    format!("POST {} HTTP/1.1\r\nhost: gateway\r\n{lines}\r\n", path.replace("PROJECT", PROJECT))
}

#[tokio::test]
async fn blank_lines_before_a_request_are_never_answered_for_it() {
    for blank in ["\r\n\r\n", "\n\n", "\r\n", "\n\r\n", "\r\n\r\n\r\n\r\n"] {
        let (world, known) = knowing().await;
        let mut line = Line::to(&world).await;
        for _ in 0..3 {
            line.says(blank).await;
            line.hears_nothing().await;
            assert!(is_hit(&line.asks(&known).await));
        }
        // Whoever sends but that has asked nothing, and is shown nothing.
        let mut other = Line::to(&world).await;
        other.says(blank).await;
        other.hears_nothing().await;
    }
}

#[tokio::test]
async fn a_head_may_be_cut_anywhere() {
    let (world, known) = knowing().await;
    let mut line = Line::to(&world).await;
    let whole = line.asks(&known).await.apart_from_id();
    for cut in 1..known.len() {
        let before = world.fast_path_hits();
        line.says(&known[..cut]).await;
        line.hears_nothing().await;
        assert_eq!(line.asks(&known[cut..]).await.apart_from_id(), whole, "{cut}");
        // What came in pieces is not looked for.
        assert_eq!(world.fast_path_hits(), before, "{cut}");
        assert!(is_hit(&line.asks(&known).await));
        assert_eq!(world.fast_path_hits(), before + 1, "{cut}");
    }
}

#[tokio::test]
async fn a_head_byte_by_byte_and_between_two_others_is_itself() {
    let (world, known) = knowing().await;
    let other = world.head(OTHER, &[]);
    let mut line = Line::to(&world).await;
    let (answer, others) = (line.asks(&known).await.apart_from_id(), line.asks(&other).await.body);
    for byte in known.as_bytes() {
        line.says([*byte]).await;
    }
    assert_eq!(line.hears().await.apart_from_id(), answer);
    // The end of one and the beginning of the next in one piece, which ends as a head does.
    let half = known.len() / 2;
    line.says(&known[..half]).await;
    line.says(format!("{}{other}", &known[half..])).await;
    assert_eq!(line.hears().await.apart_from_id(), answer);
    assert_eq!(line.hears().await.body, others);
    assert_eq!(line.asks(&known).await.apart_from_id(), answer);
}

#[tokio::test]
async fn heads_in_one_piece_are_answered_one_by_one() {
    for times in [2, 3, 40] {
        let (world, known) = knowing().await;
        let mut line = Line::to(&world).await;
        let pieces = known.repeat(times);
        // Not even when that very piece has come before.
        for _ in 0..3 {
            line.says(&pieces).await;
            for _ in 0..times {
                assert!(is_hit(&line.hears().await));
            }
            line.hears_nothing().await;
        }
        assert_eq!(world.fast_path_hits(), 1);
    }
}

#[tokio::test]
async fn what_is_known_is_not_answered_before_what_was_asked_first() {
    let (world, known) = knowing().await;
    let mut line = Line::to(&world).await;
    world.simulator.hold();
    line.says(world.head(OTHER, &[])).await;
    within(world.simulator.arrived(2)).await;
    line.says(&known).await;
    line.says(&known).await;
    line.hears_nothing().await;
    world.simulator.release();
    assert!(line.hears().await.body.contains("\"os_type\":\"Windows\""));
    for _ in 0..2 {
        let answer = line.hears().await;
        assert!(is_hit(&answer) && answer.body.contains("\"os_type\":\"Linux\""), "{answer:?}");
    }
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn a_body_is_not_a_head_whatever_is_in_it() {
    let (world, known) = knowing().await;
    let token = format!("x-auth-token: {}\r\n", world.token);
    let length = known.len();
    for (lines, before, after) in [
        (format!("content-length: {length}\r\n"), String::new(), ""),
        (format!("content-length: {}\r\n", length + 4), "\r\n\r\n".to_owned(), ""),
        ("transfer-encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n"), "\r\n0\r\n\r\n"),
        (format!("content-length: {length}\r\nexpect: 100-continue\r\n"), String::new(), ""),
    ] {
        let posted = post(RELAYED, &(token.clone() + &lines));
        let got = world.head(LIST, &lines.trim_end().split("\r\n").collect::<Vec<_>>());
        for head in [posted, got] {
            world.simulator.forget_requests();
            let mut line = Line::to(&world).await;
            // Upstream may not wait for it.
            world.simulator.hold();
            line.says(&head).await;
            for piece in [before.as_str(), &known, after].into_iter().filter(|piece| !piece.is_empty()) {
                line.says(piece).await;
            }
            world.simulator.release();
            let mut answer = line.hears().await;
            if answer.status() == 100 {
                answer = line.hears().await;
            }
            assert!(!is_hit(&answer), "{head} {answer:?}");
            line.hears_nothing().await;
            let seen = world.simulator.requests_seen();
            assert_eq!((seen.len(), world.fast_path_hits()), (1, 1), "{head}");
            // And then it is one.
            assert!(is_hit(&line.asks(&known).await));
            assert_eq!(world.fast_path_hits(), 1, "a connection by which a body has come is hyper's");
        }
    }
}

#[tokio::test]
async fn what_a_refused_upload_leaves_behind_is_not_a_request() {
    let (world, known) = knowing().await;
    for lines in [
        format!("content-length: {}\r\n", known.len()),
        "content-length: 1000000\r\n".to_owned(),
        "transfer-encoding: chunked\r\n".to_owned(),
        format!("content-length: {}\r\nexpect: 100-continue\r\n", known.len()),
        // So large that the connection gives back its read buffer as soon as it is idle.
        format!("content-length: {}\r\nx-large: {}\r\n", known.len(), "x".repeat(30_000)),
        format!("transfer-encoding: chunked\r\nx-large: {}\r\n", "x".repeat(30_000)),
    ] {
        for begun in ["", "x"] {
            let mut line = Line::to(&world).await;
            let refused = line.asks(post("/nowhere", &lines) + begun).await;
            assert_eq!(refused.status(), 404);
            // The body goes on, or begins only now. It may be read to its end, or the connection may end.
            line.says_if_it_can(&known[begun.len()..]).await;
            line.says_if_it_can(&known).await;
            line.says_no_more().await;
            let more = line.hears_out().await;
            assert!(more.len() <= 1, "{lines}: {more:?}");
            assert_eq!(world.fast_path_hits(), 1, "{lines}");
        }
    }
}

/// This head, made as long as what is read at once at first, so that what is behind it in the same piece is read alone.
fn as_long_as_a_read(head: &str) -> String {
    let padding = "x".repeat(8192 - head.len() - "x-p: \r\n".len());
    let end = head.len() - "\r\n".len();
    format!("{}x-p: {padding}\r\n\r\n", &head[..end])
}

#[tokio::test]
async fn what_is_read_by_itself_is_not_a_request_for_that() {
    let (world, known) = knowing().await;
    // A body that nobody wants, and that is there already when its request has been refused.
    let length = format!("content-length: {}\r\n", known.len());
    let expects = format!("{length}expect: 100-continue\r\n");
    for head in [
        post("/nowhere", &length),
        world.head("/nowhere", &[length.trim_end()]),
        // Not read before it is wanted, and so when its request is over.
        post("/nowhere", &expects),
        world.head("/nowhere", &[length.trim_end(), "expect: 100-continue"]),
    ] {
        let mut line = Line::to(&world).await;
        assert_eq!(line.asks(as_long_as_a_read(&head) + &known).await.status(), 404);
        line.hears_nothing().await;
        assert!(is_hit(&line.asks(&known).await));
        line.hears_nothing().await;
        assert_eq!(world.fast_path_hits(), 1);
    }
    // A request whose turn has not come.
    let mut line = Line::to(&world).await;
    line.says(as_long_as_a_read(&world.head("/nowhere", &[])) + &known).await;
    assert_eq!(line.hears().await.status(), 404);
    assert!(is_hit(&line.hears().await));
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn heads_that_are_read_one_by_one_are_answered_one_by_one() {
    let (world, known) = knowing().await;
    let long = as_long_as_a_read(&known);
    world.learns(&long).await;
    for (last, repeated) in [("", 3), (world.head(OTHER, &[]).as_str(), 3), ("GET / HTTP/1.1\r\n", 3)] {
        let before = world.fast_path_hits();
        let mut line = Line::to(&world).await;
        line.says(long.repeat(3) + last).await;
        line.says_no_more().await;
        let answers = line.hears_out().await;
        assert!(answers.len() >= 3 && answers[..3].iter().all(is_hit), "{last:?} {answers:?}");
        assert!(!answers[3..].iter().any(is_hit), "{last:?} {answers:?}");
        assert_eq!(world.fast_path_hits(), before + repeated, "{last:?}");
    }
}

#[tokio::test]
async fn what_is_no_head_is_refused_though_a_known_one_follows() {
    let (world, known) = knowing().await;
    for bad in [
        "GET / HTTP/1.1\r\nhost: x\r\na: b\r\n folded: c\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: x\r\n\r\n",
        "GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        "GET /\r\n\r\n",
        "\0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",
    ] {
        for is_first in [true, false] {
            let mut line = Line::to(&world).await;
            if !is_first {
                line.asks(&known).await;
            }
            let before = world.fast_path_hits();
            line.says(bad).await;
            line.says_if_it_can(&known).await;
            let answers = line.hears_out().await;
            assert!(answers.len() <= 1 && answers.iter().all(|answer| answer.status() == 400), "{bad:?} {answers:?}");
            assert_eq!(world.fast_path_hits(), before, "{bad:?}");
        }
    }
    // And whatever the whole path makes of these it makes of them each time.
    for same in ["\r\n{}", "\n{}", "\r\n\r\n{}"] {
        let head = same.replace("{}", &known);
        for _ in 0..3 {
            assert!(is_hit(&Line::to(&world).await.asks(&head).await));
        }
    }
}

#[tokio::test]
async fn who_asks_to_close_and_who_says_no_more_is_answered_and_left() {
    let (world, known) = knowing().await;
    let mut line = Line::to(&world).await;
    line.asks(&known).await;
    line.says(world.head(LIST, &["connection: close"])).await;
    line.says_if_it_can(&known).await;
    let answers = line.hears_out().await;
    assert!(answers.len() == 1 && answers[0].header("connection") == "close", "{answers:?}");
    let before = world.fast_path_hits();
    let mut line = Line::to(&world).await;
    line.says(&known).await;
    line.says_no_more().await;
    assert!(line.hears_out().await.iter().all(is_hit));
    assert_eq!(world.fast_path_hits(), before + 1);
    // A beginning of a head that never ends is answered by nothing.
    let mut line = Line::to(&world).await;
    line.asks(&known).await;
    line.says(&known[..known.len() - 1]).await;
    line.says_no_more().await;
    assert!(!line.hears_out().await.iter().any(is_hit));
}

#[tokio::test]
async fn a_preface_in_pieces_begins_http2_and_a_known_head_within_it_is_nothing() {
    let (world, known) = knowing().await;
    let mut line = Line::to(&world).await;
    for piece in ["P", "RI * HTTP/2.0\r\n\r\n", "SM\r\n", "\r\n"] {
        line.says(piece).await;
    }
    // No frame: the gateway's own settings come, and then its farewell.
    line.says_if_it_can(&known).await;
    line.says_no_more().await;
    let heard = line.hears_bytes().await;
    assert!(heard.get(3) == Some(&4) && !heard.windows(8).any(|bytes| bytes == b"products"), "{heard:?}");
    assert_eq!(world.fast_path_hits(), 1);
}

/// What is sent, piece by piece.
#[derive(Clone)]
enum Ask {
    Known,
    Other,
    New,
    Nowhere,
    Blank,
    Upload,
    Chunked,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["known", "other", "new", "nowhere", "blank", "upload", "chunked"][self.clone() as usize])
    }
}

impl Ask {
    fn bytes(&self, world: &World, known: &str) -> String {
        let token = format!("x-auth-token: {}\r\n", world.token);
        match self {
            Self::Known => known.to_owned(),
            Self::Other => world.head(OTHER, &[]),
            Self::New => world.head(LIST, &["x-n: 1"]),
            Self::Nowhere => world.head("/nowhere", &[]),
            Self::Blank => "\r\n".to_owned(),
            Self::Upload => post(RELAYED, &format!("{token}content-length: {}\r\n", known.len())) + known,
            Self::Chunked => {
                let head = post(RELAYED, &format!("{token}transfer-encoding: chunked\r\n"));
                format!("{head}{:x}\r\n{known}\r\n0\r\n\r\n", known.len())
            }
        }
    }

    /// Whether this is the answer to it.
    fn is_answered_by(&self, answer: &Heard) -> bool {
        match self {
            Self::Known | Self::New => is_hit(answer) && answer.body.contains("\"os_type\":\"Linux\""),
            Self::Other => is_hit(answer) && answer.body.contains("\"os_type\":\"Windows\""),
            Self::Nowhere => answer.status() == 404 && answer.body.contains("error_code"),
            Self::Upload | Self::Chunked => !is_hit(answer) && answer.head.contains("api-gateway"),
            Self::Blank => false,
        }
    }
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let one = prop_oneof![
        6 => Just(Ask::Known),
        2 => Just(Ask::Other),
        1 => Just(Ask::New),
        1 => Just(Ask::Nowhere),
        1 => Just(Ask::Blank),
        1 => Just(Ask::Upload),
        1 => Just(Ask::Chunked),
    ];
    vec(one, 1..8)
}

#[test]
fn each_request_has_its_answer_in_order_however_they_are_cut() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (world, known) = runtime.block_on(knowing());
    runtime.block_on(world.learns(&world.head(OTHER, &[])));
    let cuts = vec((0..2_000_usize, any::<bool>()), 0..5);
    let config = Config { cases: 400, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let tried = TestRunner::new(config).run(&(asks(), cuts, any::<bool>()), |(asks, cuts, is_by_request)| {
        runtime.block_on(is_in_order(&world, &known, &asks, &cuts, is_by_request))
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
    assert!(world.fast_path_hits() > 100, "{}", world.fast_path_hits());
}

/// Says what is asked in pieces that end at the cuts, and with each request or not, and hears the answers so far before
/// the next piece or all at the end.
async fn is_in_order(
    world: &World,
    known: &str,
    asks: &[Ask],
    cuts: &[(usize, bool)],
    is_by_request: bool,
) -> Result<(), TestCaseError> {
    let mut bytes = String::new();
    let mut ends = Vec::new();
    for ask in asks {
        bytes += &ask.bytes(world, known);
        ends.push((bytes.len(), ask));
    }
    let mut pieces: Vec<(usize, bool)> = cuts.iter().map(|&(cut, waits)| (cut % bytes.len(), waits)).collect();
    pieces.extend(is_by_request.then_some(&ends).into_iter().flatten().map(|&(end, _)| (end, true)));
    pieces.push((bytes.len(), true));
    pieces.sort_unstable();
    let mut due = ends.iter().filter(|(_, ask)| !matches!(ask, Ask::Blank));
    let mut line = Line::to(world).await;
    let (mut said, mut answered) = (0, 0);
    for (end, waits) in pieces {
        line.says(&bytes[said..end]).await;
        said = end;
        let whole = ends.iter().filter(|(at, ask)| *at <= end && !matches!(ask, Ask::Blank)).count();
        while waits && answered < whole {
            let (_, ask) = due.next().unwrap();
            let answer = line.hears().await;
            prop_assert!(ask.is_answered_by(&answer), "{ask:?}: {answer:?}");
            answered += 1;
        }
    }
    line.hears_nothing().await;
    Ok(())
}
