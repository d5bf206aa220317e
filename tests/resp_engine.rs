//! The engine in memory that simulations use (`benches/simulation/resp_engine`): it answers as real engines do, gateways can
//! use it, and its faults are those of an engine.

use std::time::Duration;

use http::StatusCode;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redis::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::advance;
use workspace_gateway::testing::fleet::{RELEASE, RENEW, STORE, TELL};

use self::engine::{RespEngine, Role};
use crate::support::engine::{Engine, programs};
use crate::support::fleet::{LIST, is_from_fleet, settings, store, two_gateways_with};
use crate::support::{PROOF, within};

#[path = "../benches/simulation/resp_engine/mod.rs"]
mod engine;

/// Keys as the gateways name them.
const CONTROL: &str = "wg2:{test}:0:c";
const LOG: &str = "wg2:{test}:0:log";
const RECORDS: [&str; 3] = ["wg2:{test}:0:r:1", "wg2:{test}:0:r:2", "wg2:{test}:0:r:3"];
const LEASES: [&str; 2] = ["wg2:{test}:0:l:1", "wg2:{test}:0:l:2"];
/// In place of an id: what comes after the last entry that was read.
const AFTER: &[u8] = b"after";
/// Lifetimes are multiples of it, in milliseconds. It is far longer than a test.
const UNIT: i64 = 100_000;

type Command = Vec<Vec<u8>>;

fn command(parts: &[&str]) -> Command {
    parts.iter().map(|part| part.as_bytes().to_vec()).collect()
}

/// A connection to an engine.
struct Client<S> {
    stream: S,
    received: Vec<u8>,
    /// The id of the last entry of the log that was read.
    last: Option<String>,
}

impl Client<DuplexStream> {
    fn of(engine: &RespEngine) -> Self {
        let (near, far) = duplex(64 * 1024);
        let engine = engine.clone();
        tokio::spawn(async move { engine.serve(far).await });
        Self::new(near)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    fn new(stream: S) -> Self {
        Self { stream, received: Vec::new(), last: None }
    }

    async fn write(&mut self, commands: &[Command]) {
        let after = match self.last.as_deref().and_then(|id| id.split_once('-')) {
            Some((millis, sequence)) => format!("{millis}-{}", sequence.parse::<u64>().unwrap() + 1),
            None => "-".to_owned(),
        };
        let mut bytes = Vec::new();
        for command in commands {
            bytes.extend(format!("*{}\r\n", command.len()).bytes());
            for part in command {
                let part = if part == AFTER { after.as_bytes() } else { part };
                bytes.extend(format!("${}\r\n", part.len()).bytes());
                bytes.extend(part);
                bytes.extend(b"\r\n");
            }
        }
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next reply, byte for byte. `None` if the connection has ended.
    async fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = reply_length(&self.received) {
                return Some(self.received.drain(..length).collect());
            }
            if within(self.stream.read_buf(&mut self.received)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Sends a pipeline. Returns its replies.
    async fn ask(&mut self, commands: &[Command]) -> Vec<Vec<u8>> {
        self.write(commands).await;
        let mut replies = Vec::new();
        for command in commands {
            let reply = self.read().await.expect("a reply");
            if command[0] == b"XRANGE"
                && let Value::Array(entries) = redis::parse_redis_value(&reply).unwrap()
            {
                self.last = entries.last().map(|entry| id_and_rest(entry).0).or(self.last.take());
            }
            replies.push(reply);
        }
        replies
    }

    async fn ask_one(&mut self, parts: &[&str]) -> String {
        String::from_utf8_lossy(&self.ask(&[command(parts)]).await[0]).trim_end().to_owned()
    }
}

/// How long the first reply is. `None` if it is incomplete.
fn reply_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || std::str::from_utf8(&bytes[1..line - 2]).unwrap().parse::<i64>().unwrap();
    let length = match bytes[0] {
        b'$' => line + usize::try_from(number() + 2).ok().filter(|_| number() >= 0).unwrap_or(0),
        b'*' => (0..number()).try_fold(line, |at, _| Some(at + reply_length(bytes.get(at..)?)?))?,
        _ => line,
    };
    (bytes.len() >= length).then_some(length)
}

/// What must be the same in the replies of two engines: all bytes, without what differs by nature.
fn comparable(command: &Command, reply: &[u8]) -> String {
    let text = reply.escape_ascii().to_string();
    match (&command[0][..], redis::parse_redis_value(reply).unwrap()) {
        // Real engines add the hash and the line of the script.
        (_, Value::ServerError(_)) => text.split(" script: ").next().unwrap().trim_end_matches("\\r\\n").to_owned(),
        (b"TIME", Value::Array(parts)) => format!("{} parts", parts.len()),
        (b"ROLE", Value::Array(parts)) => format!("{:?}", parts[0]),
        (b"PTTL", Value::Int(left @ 0..)) => format!("at most {}", (left + UNIT - 1) / UNIT),
        // Its order is not specified.
        (b"HGETALL", Value::Array(parts)) => {
            let mut pairs: Vec<String> = parts.chunks(2).map(|pair| format!("{pair:?}")).collect();
            pairs.sort();
            pairs.concat()
        }
        (b"XRANGE", Value::Array(entries)) => {
            entries.iter().map(|entry| format!("{:?}", id_and_rest(entry).1)).collect()
        }
        _ => text,
    }
}

fn id_and_rest(entry: &Value) -> (String, &Value) {
    let Value::Array(parts) = entry else { panic!("{entry:?}") };
    let [Value::BulkString(id), rest] = &parts[..] else { panic!("{entry:?}") };
    (String::from_utf8(id.clone()).unwrap(), rest)
}

fn pick<'p>(dice: &mut SmallRng, from: &[&'p str]) -> &'p str {
    from[dice.random_range(0..from.len())]
}

/// A command as `src/fleet` sends it, or as one of its scripts does.
fn random_command(dice: &mut SmallRng) -> Command {
    let all = [&[CONTROL, LOG], &RECORDS[..], &LEASES].concat();
    // Now and then a key of another type.
    let mut key = |keys: &[&'static str]| if dice.random_ratio(1, 30) { pick(dice, &all) } else { pick(dice, keys) };
    let (control, log, record, marker, lease) =
        (key(&[CONTROL]), key(&[LOG]), key(&RECORDS), key(&RECORDS), key(&LEASES));
    let incarnation = pick(dice, &["incarnation-0000", "incarnation-0001"]);
    let set = pick(dice, &["", "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", "b5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5"]);
    let field = pick(dice, &["i", "t", "n", "s", set]);
    let holder = pick(dice, &["holder-000000000", "holder-000000001"]);
    let number = format!("{:016}", dice.random_range(0..9));
    let lifetime = (dice.random_range(1..9) * UNIT).to_string();
    let (count, value) = (dice.random_range(1..40).to_string(), format!("value\r\n{}", dice.random_range(0..9)));
    let text = command(&match dice.random_range(0..26) {
        0 | 1 => vec!["SET", lease, holder, "NX", "PX", &lifetime],
        2 => vec!["GET", lease],
        3 => vec!["PTTL", pick(dice, &all)],
        4 | 5 => vec!["GETRANGE", record, "0", &count],
        6 => vec!["HSETNX", control, "i", incarnation],
        7 => vec!["HMGET", control, "i", field, "missing"],
        8 => vec!["HINCRBY", control, pick(dice, &["t", field]), "1"],
        9 => vec!["TIME"],
        10 => vec!["ECHO", &value],
        11 => vec!["ROLE"],
        12 => vec!["XRANGE", log, "-", "+", "COUNT", &count],
        13 => vec!["EXISTS", pick(dice, &all)],
        14 => vec!["DEL", record, lease, pick(dice, &all)],
        15 => vec!["HGETALL", control],
        16 => vec!["HDEL", control, field, "missing"],
        17 => vec!["HSET", control, field, &value],
        18 => vec!["HLEN", control],
        19 | 20 => {
            let holder = pick(dice, &["", holder]);
            let arguments = [incarnation, &number, &lifetime, &value, holder];
            let keys: &[&str] =
                if dice.random() { &["3", control, record, lease] } else { &["4", control, record, lease, marker] };
            [&["EVAL", STORE], keys, &arguments].concat()
        }
        21 | 22 => {
            let id = pick(dice, &["id-0", "id-1", "id-2"]);
            vec!["EVAL", TELL, "2", control, log, incarnation, set, id, &value, "all entries", "all grants"]
        }
        23 => vec!["EVAL", RENEW, "1", lease, holder, &lifetime],
        24 => vec!["EVAL", RELEASE, "1", lease, holder, pick(dice, &["", &lifetime])],
        _ => vec!["PEXPIRE", record, &lifetime],
    });
    // Bytes that are no text.
    text.into_iter().map(|part| if part == value.as_bytes() { [&part[..], b"\xff\0"].concat() } else { part }).collect()
}

/// Sends the same commands to both engines. Asserts that they give the same replies. Returns how many were errors.
async fn compare(
    real: &mut Client<TcpStream>,
    ours: &mut Client<DuplexStream>,
    commands: &[Command],
    at: &str,
) -> usize {
    let (expected, got) = (real.ask(commands).await, ours.ask(commands).await);
    for ((command, expected), got) in commands.iter().zip(&expected).zip(&got) {
        let shown: Vec<_> = command.iter().map(|part| part.escape_ascii().to_string()).collect();
        assert_eq!(comparable(command, got), comparable(command, expected), "{at}: {shown:?}");
    }
    expected.iter().filter(|reply| reply[0] == b'-').count()
}

/// How an engine is when it is compared.
const STATES: [(&str, &[&str]); 5] = [
    ("healthy", &[]),
    ("full", &["CONFIG", "SET", "maxmemory", "1"]),
    ("healthy again", &["CONFIG", "SET", "maxmemory", "0"]),
    ("a replica", &["REPLICAOF", "127.0.0.1", "1"]),
    ("a master again", &["REPLICAOF", "NO", "ONE"]),
];

#[tokio::test]
async fn the_engine_in_memory_gives_the_replies_of_real_engines() {
    for program in programs() {
        let server = Engine::start(&program, "compared", &[]).await;
        let mut real = Client::new(TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
        for seed in 0..8 {
            server.run(&["FLUSHALL"]).await;
            let engine = RespEngine::new(seed);
            let mut ours = Client::of(&engine);
            real.last = None;
            let mut dice = SmallRng::seed_from_u64(seed);
            for (state, setting) in STATES {
                if !setting.is_empty() {
                    assert_eq!(server.run(setting).await, "OK");
                }
                engine.out_of_memory(state == "full");
                engine.set_role(if state == "a replica" { Role::Replica } else { Role::Master });
                let mut errors = 0;
                for _ in 0..60 {
                    let number = dice.random_range(1..20);
                    let commands: Vec<Command> = (0..number).map(|_| random_command(&mut dice)).collect();
                    errors += compare(&mut real, &mut ours, &commands, &format!("{program}, {seed}, {state}")).await;
                }
                assert!(errors > 0, "nothing was refused when {state}");
            }
            assert_eq!(engine.unexpected(), Vec::<String>::new());
        }
    }
}

/// TELL of a notice that voids a set, which only this number has.
fn notice(number: usize) -> Command {
    let (set, id) = (format!("{:032x}", number * 7919 % 100_003), format!("id-{number}"));
    command(&["EVAL", TELL, "2", CONTROL, LOG, "incarnation-0000", &set, &id, "sealed", "all entries", "all grants"])
}

#[tokio::test]
async fn many_notices_are_halved_and_trimmed_as_real_engines_do_it() {
    for program in programs() {
        let server = Engine::start(&program, "many", &[]).await;
        let mut real = Client::new(TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
        let engine = RespEngine::new(1);
        let mut ours = Client::of(&engine);
        let notices: Vec<Command> = (0..4500).map(notice).collect();
        let next = [command(&["XRANGE", LOG, "after", "+", "COUNT", "32"])];
        for batch in notices.chunks(100) {
            compare(&mut real, &mut ours, batch, &program).await;
            // Before it is trimmed, both logs begin with the same notice.
            compare(&mut real, &mut ours, &next, &program).await;
        }
        let control = [command(&["HLEN", CONTROL]), command(&["HGETALL", CONTROL])];
        compare(&mut real, &mut ours, &control, &program).await;
        let whole = [command(&["XRANGE", LOG, "-", "+", "COUNT", "9999"])];
        for reply in [real.ask(&whole).await, ours.ask(&whole).await] {
            let Value::Array(entries) = redis::parse_redis_value(&reply[0]).unwrap() else { panic!("no log") };
            assert!((4096..4196).contains(&entries.len()), "{program}: {}", entries.len());
        }
    }
}

#[tokio::test]
async fn two_gateways_share_an_entry_and_a_denial_by_the_engine_in_memory() {
    let engine = RespEngine::new(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = settings(&format!("redis://{}", listener.local_addr().unwrap()), "");
    let listening = engine.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let engine = listening.clone();
            tokio::spawn(async move { engine.serve(stream).await });
        }
    });
    let (first, second) = two_gateways_with(&settings).await;
    second.get(PROOF).await;
    store(&first, LIST).await;
    assert!(is_from_fleet(&second.get(LIST).await));
    assert!(second.get(LIST).await.is_hit());
    // The caller of the second gateway is denied at the first one.
    first.simulator.revoke(&second.token);
    assert_eq!(first.get_as(&second.token, LIST).await.status(), StatusCode::UNAUTHORIZED);
    let asking = async { while second.get(LIST).await.status() != StatusCode::UNAUTHORIZED {} };
    within(asking).await;
    assert_eq!(engine.unexpected(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn keys_expire_by_the_clock_of_the_runtime_and_by_jumps() {
    let engine = RespEngine::new(1);
    let mut client = Client::of(&engine);
    let set = ["SET", LEASES[0], "holder", "NX", "PX", "1000"];
    let left = ["PTTL", LEASES[0]];
    assert_eq!(client.ask_one(&set).await, "+OK");
    advance(Duration::from_millis(400)).await;
    assert_eq!((client.ask_one(&set).await, client.ask_one(&left).await), ("$-1".to_owned(), ":600".to_owned()));
    assert_eq!(client.ask_one(&["TIME"]).await, "*2\r\n$10\r\n1800000000\r\n$6\r\n400000");
    advance(Duration::from_millis(600)).await;
    // As in real engines, it is still there in the last millisecond.
    assert_eq!(client.ask_one(&left).await, ":0");
    engine.jump(Duration::from_millis(1), false);
    assert_eq!(client.ask_one(&left).await, ":-2");
    assert_eq!(engine.keys(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_runs_later_what_a_client_has_sent_before_it_left() {
    let engine = RespEngine::new(1);
    let (mut leaving, mut staying) = (Client::of(&engine), Client::of(&engine));
    engine.hang(true);
    leaving.write(&[command(&["HSETNX", CONTROL, "i", "left"])]).await;
    drop(leaving);
    staying.write(&[command(&["HMGET", CONTROL, "i"])]).await;
    let silence = tokio::time::timeout(Duration::from_secs(60), staying.stream.read_u8()).await;
    assert!(silence.is_err(), "it answers");
    engine.hang(false);
    assert_eq!(staying.read().await.unwrap(), b"*1\r\n$4\r\nleft\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_restart_loses_all_and_closes_connections_and_other_losses_are_partial() {
    let engine = RespEngine::new(1);
    let mut client = Client::of(&engine);
    let stored = RECORDS.map(|record| command(&["SET", record, "value", "PX", "1000"]));
    client.ask(&[&stored[..], &[notice(1), notice(2), notice(3)]].concat()).await;
    assert_eq!((engine.evict(2), engine.keys().len()), (2, 3));
    engine.trim_log(1);
    let log = client.ask_one(&["XRANGE", LOG, "-", "+", "COUNT", "9"]).await;
    assert!(log.starts_with("*1\r\n") && log.contains("$1\r\nn\r\n$1\r\n3\r\n"), "{log}");
    let backup = engine.backup();
    engine.lose_log();
    engine.lose_control();
    assert_eq!((engine.evict(9), engine.keys().len()), (1, 0));
    engine.go_back(&backup);
    assert_eq!((client.read().await, engine.keys().len()), (None, 3));
    engine.restart();
    assert_eq!(engine.keys().len(), 0);
    assert_eq!(Client::of(&engine).ask_one(&["GET", RECORDS[0]]).await, "$-1");
}

/// What a client gets that draws fifty tickets in one pipeline, while another one does so, too.
async fn tickets(seed: u64) -> Vec<Vec<u8>> {
    let engine = RespEngine::new(seed);
    let (mut first, mut second) = (Client::of(&engine), Client::of(&engine));
    let pipeline = vec![command(&["HINCRBY", CONTROL, "t", "1"]); 50];
    second.write(&pipeline).await;
    first.ask(&pipeline).await
}

#[tokio::test(start_paused = true)]
async fn the_seed_decides_how_commands_of_two_connections_are_mixed() {
    assert_eq!(tickets(1).await, tickets(1).await);
    assert_ne!(tickets(1).await, tickets(2).await);
}

#[tokio::test(start_paused = true)]
async fn unknown_commands_and_scripts_are_errors_and_recorded() {
    let engine = RespEngine::new(1);
    let mut client = Client::of(&engine);
    assert_eq!(client.ask_one(&["FLUSHALL"]).await, "-ERR unknown command");
    assert_eq!(client.ask_one(&["EVAL", "return 1", "0"]).await, "-ERR unknown script");
    client.stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    assert_eq!(client.read().await.unwrap(), b"-ERR Protocol error\r\n");
    assert_eq!(client.read().await, None);
    assert_eq!(engine.unexpected(), ["EVAL return 1 0", "FLUSHALL", "GET / HTTP/1.1\r\n"]);
}
