//! Reading the files that settings name. However they are made, reading ends: no file may be larger than [`MOST`], and no
//! pipe may take longer than ten seconds. Devices, directories and sockets are not read.

use std::fs::{self, FileType};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The largest file that is read, in bytes: 1 MiB. The bundle of a system's certificate authorities has a quarter of that.
pub(crate) const MOST: u64 = 1 << 20;

/// How long it may take until a pipe is open and has been read to its end.
const PIPE_LIMIT: Duration = Duration::from_secs(10);

/// Reads a regular file, or a pipe such as a shell's `<(…)`.
///
/// # Errors
/// If the path leads to neither, it is larger than [`MOST`], a pipe does not end in time, or the system refuses it.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_within(path, PIPE_LIMIT)
}

fn read_within(path: &Path, limit: Duration) -> io::Result<Vec<u8>> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() {
        return read_to_end(path);
    }
    if !kind.is_fifo() {
        return Err(io::Error::other(format!("expected a regular file or a pipe, found {}", name(kind))));
    }
    // Opening a pipe waits for somebody who writes, and reading it waits for the end. The thread of a pipe that does not
    // end is left behind: nothing can be done about it, and it holds one descriptor.
    let (sender, receiver) = mpsc::channel();
    let pipe = PathBuf::from(path);
    thread::Builder::new().spawn(move || sender.send(read_to_end(&pipe)))?;
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        let words = format!("the pipe has not come to its end within {limit:?}: expected that its writer closes it");
        Err(io::Error::new(io::ErrorKind::TimedOut, words))
    })
}

/// Reads a regular file. A pipe could be read only once, and this is for files that are read again.
///
/// # Errors
/// If the path leads to something else, it is larger than [`MOST`], or the system refuses it.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() {
        return Err(io::Error::other(format!("expected a regular file, found {}", name(kind))));
    }
    read_to_end(path)
}

fn read_to_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other(format!("is larger than {MOST} bytes (1 MiB), the most that is read")));
    }
    Ok(bytes)
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// The fewest characters of a private key in base64: an Ed25519 key in PKCS #8 has 64 (RFC 8410 §7).
const SHORTEST_KEY: usize = 60;

/// A path as an error may show it. What has line breaks is no path, but what should be in the file, such as a key. So is what
/// leads to nothing, and is PEM (RFC 7468) or the base64 of a DER sequence, on one line.
pub(crate) fn shown_path(path: &Path) -> String {
    let shown = path.display().to_string();
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let is_der = shown.len() >= SHORTEST_KEY && shown.starts_with('M') && shown.chars().all(is_base64);
    if shown.contains('\n') {
        "(not shown, for it has line breaks)".to_owned()
    } else if (is_der || shown.contains("-----")) && !path.exists() {
        "(not shown, for it is no path and may be a key)".to_owned()
    } else {
        shown
    }
}

/// The same, where the path should lead to a secret. What leads to nothing may be the secret itself,
/// which somebody has given in place of the path.
pub(crate) fn secret_path(path: &Path) -> String {
    if path.exists() {
        path.display().to_string()
    } else {
        "the file that it names (not shown, for it may be the secret)".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_key_in_place_of_a_path_is_not_shown() {
        let der = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
        for key in
            [der.to_owned(), format!("-----BEGIN PRIVATE KEY-----{der}-----END PRIVATE KEY-----"), format!("a\n{der}")]
        {
            let shown = shown_path(Path::new(&key));
            assert!(shown.starts_with("(not shown, for it "), "{shown}");
        }
        for path in ["/etc/tls/cert.pem", "Main", "/", &format!("/{}", "M".repeat(80))] {
            assert_eq!(shown_path(Path::new(path)), path);
        }
    }

    #[test]
    fn a_pipe_without_an_end_is_given_up() {
        let (reader, _writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        let error = read_within(&path, Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("has not come to its end within 1ms"), "{error}");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused_with_what_is_allowed() {
        let large = std::env::temp_dir().join(format!("workspace-gateway-large-{}", std::process::id()));
        fs::File::create(&large).unwrap().set_len(MOST).unwrap();
        assert_eq!(read(&large).unwrap().len() as u64, MOST);
        fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
        for read in [read, read_regular] {
            for (path, expected) in [
                (Path::new("/dev/zero"), "found a device"),
                (Path::new("/"), "found a directory"),
                (&large, "is larger than 1048576 bytes (1 MiB)"),
            ] {
                let error = read(path).unwrap_err().to_string();
                assert!(error.contains(expected), "{}: {error}", path.display());
            }
        }
        fs::remove_file(large).unwrap();
    }
}
