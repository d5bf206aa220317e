//! The program as a process of its own, and its memory as Linux reports it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore};

use crate::bare;
use crate::cgroup::{Cgroup, field, sockets_of_all};
use crate::loads;
use crate::loads::client::Target;
use crate::upstream::Upstream;

/// Limits above the number of calls of the loads, so that the queue to upstream is not measured.
const SETTINGS: &str = "[upstream]\nmax_calls = 2048\nmax_calls_per_caller = 1024\n[cache]\nttl = \"1h\"\n";

/// The process. It is killed when this is dropped.
pub(crate) struct Gateway {
    process: Child,
    proxy: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    // Last field: it can be removed only when the process has ended.
    cgroup: Option<Cgroup>,
}

/// The memory of the process at one moment, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: usize,
    pub(crate) anon: usize,
    pub(crate) sockets: usize,
}

/// A certificate for `localhost` in two files, and a client configuration that trusts it.
struct TlsFiles {
    files: [String; 2],
    client: Arc<ClientConfig>,
}

impl Gateway {
    /// Without a memory limit.
    pub(crate) fn start(upstream: &Upstream, tls: bool) -> Self {
        Self::with(upstream, tls, SETTINGS, Cgroup::new(None).ok())
    }

    pub(crate) fn with(upstream: &Upstream, tls: bool, settings: &str, cgroup: Option<Cgroup>) -> Self {
        let certified = tls.then(certify);
        let mut settings = settings.to_owned();
        if let Some(TlsFiles { files, .. }) = &certified {
            if !settings.contains("cert_file") {
                settings.push_str("[listen]\ncert_file = \"/tls.crt\"\nkey_file = \"/tls.key\"\n");
            }
            settings = with_files(&settings, files);
        }
        let key = loads::settings();
        let file = file("toml");
        fs::write(&file, format!("{settings}\n{key}")).expect("a configuration file");
        let upstream = format!("http://{}", upstream.address);
        let listeners = ["--listen", "--metrics-listen", "--admin-listen"].map(|name| [name, "127.0.0.1:0"]);
        let mut arguments = vec!["serve", "--config", &file];
        arguments.extend(listeners.as_flattened());
        arguments.extend(["--workspace-url", &upstream, "--appstream-url", &upstream]);
        let client = certified.map(|certified| certified.client);
        Self::launch(&program(), &arguments, client, cgroup)
    }

    /// A bare hyper server instead.
    pub(crate) fn bare() -> Self {
        let program = std::env::current_exe().expect("this program");
        Self::launch(program.to_str().expect("a path"), &[bare::FLAG], None, Cgroup::new(None).ok())
    }

    fn launch(program: &str, arguments: &[&str], tls: Option<Arc<ClientConfig>>, cgroup: Option<Cgroup>) -> Self {
        let door = cgroup.as_ref().map_or("/dev/null".into(), Cgroup::door);
        let mut command = Command::new("sh");
        // It joins the cgroup before it allocates memory.
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(door).arg(program).args(arguments);
        // The same on every machine: each worker has its own allocator arena.
        command.env("TOKIO_WORKER_THREADS", "2");
        let process = command.stderr(Stdio::piped()).spawn().expect("the gateway starts");
        // Created first, so that the process is killed whatever happens next.
        let mut gateway = Self { process, proxy: SocketAddr::from(([0, 0, 0, 0], 0)), tls, cgroup };
        let mut log = BufReader::new(gateway.process.stderr.take().expect("it is piped"));
        let (mut line, mut seen) = (String::new(), String::new());
        let proxy = loop {
            line.clear();
            assert!(log.read_line(&mut line).expect("its log is text") > 0, "exited before it was ready: {seen}");
            seen.push_str(&line);
            if let Some(proxy) = address(&line) {
                break proxy;
            }
        };
        gateway.proxy = proxy;
        // Reads the rest of the log, so that the pipe does not fill up.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        gateway
    }

    pub(crate) fn target(&self) -> Target {
        Target { address: self.proxy, tls: self.tls.clone() }
    }

    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().map_or(true, |status| status.is_some())
    }

    pub(crate) fn memory(&self) -> Memory {
        let sockets = self.cgroup.as_ref().map_or_else(sockets_of_all, Cgroup::sockets);
        let [resident, anon] = read(self.process.id());
        Memory { resident, anon, sockets }
    }

    /// Starts recording the peak of `RssAnon`.
    pub(crate) fn watch(&self) -> Peak {
        let (most, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (most, ended, id) = (Arc::clone(&most), Arc::clone(&ended), self.process.id());
            move || {
                while !ended.load(Ordering::Relaxed) {
                    most.fetch_max(read(id)[1], Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Peak { most, ended, thread }
    }
}

/// Records the peak of `RssAnon`, in KiB.
pub(crate) struct Peak {
    most: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Peak {
    pub(crate) fn end(self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic");
        self.most.load(Ordering::Relaxed)
    }
}

/// A file of this process only: if another run changed the file, the gateway would reload it.
fn file(end: &str) -> String {
    format!("{}/memory-{}.{end}", env!("CARGO_TARGET_TMPDIR"), std::process::id())
}

/// The program given by `--program`, or else the one that was built with this bench.
fn program() -> String {
    let named = std::env::args().skip_while(|argument| argument != "--program").nth(1);
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_workspace-gateway").to_owned())
}

/// `VmRSS` and `RssAnon` of a process in KiB, or zeros if it has ended.
fn read(id: u32) -> [usize; 2] {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    ["VmRSS", "RssAnon"].map(|name| field(&status, name).unwrap_or(0))
}

/// The proxy address, if a line of the log (text or JSON) has it.
fn address(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("proxy=").or_else(|| line.split_once("\"proxy\":\""))?;
    rest.split([' ', '"', '\n']).next()?.parse().ok()
}

fn certify() -> TlsFiles {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let files = ["crt", "key"].map(file);
    fs::write(&files[0], cert.pem()).expect("a file");
    fs::write(&files[1], signing_key.serialize_pem()).expect("a file");
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("a certificate");
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    TlsFiles { files, client: Arc::new(client) }
}

/// Replaces the certificate and key files in the settings of a deployment.
fn with_files(settings: &str, [certificate, key]: &[String; 2]) -> String {
    let lines = settings.lines().map(|line| match line.split_once(" = ") {
        Some(("cert_file", _)) => format!("cert_file = \"{certificate}\"\n"),
        Some(("key_file", _)) => format!("key_file = \"{key}\"\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        ["toml", "crt", "key"].iter().for_each(|end| drop(fs::remove_file(file(end))));
    }
}
