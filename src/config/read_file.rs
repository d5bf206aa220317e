//! Reads the files that settings name. Reading must always end: a file may have at most [`MAX_FILE_SIZE`] bytes, and a
//! pipe must end within ten seconds. Devices, directories and sockets are not read.

use std::fs::{self, FileType};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// 1 MiB. The CA bundle of a Linux distribution has about a quarter of that.
pub(crate) const MAX_FILE_SIZE: u64 = 1 << 20;

/// For opening a pipe and reading it to its end.
const PIPE_LIMIT: Duration = Duration::from_secs(10);

/// Reads a regular file, or a pipe such as a shell's `<(…)`.
///
/// # Errors
/// If the path is neither, the file is larger than [`MAX_FILE_SIZE`], a pipe does not end in time, or a system call fails.
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
    // Opening a pipe waits for a writer, and reading it waits for the end. If it does not end, its thread cannot be
    // stopped: it stays and holds one file descriptor.
    let (sender, receiver) = mpsc::channel();
    let pipe = PathBuf::from(path);
    thread::Builder::new().spawn(move || sender.send(read_to_end(&pipe)))?;
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        let message = format!("the pipe did not end within {limit:?}: expected that its writer closes it");
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    })
}

/// Reads a regular file. This is for files that are read again, so a pipe is refused.
///
/// # Errors
/// If the path is something else, the file is larger than [`MAX_FILE_SIZE`], or the system call fails.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() {
        return Err(io::Error::other(format!("expected a regular file, found {}", name(kind))));
    }
    read_to_end(path)
}

fn read_to_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(io::Error::other(format!("is larger than {MAX_FILE_SIZE} bytes (1 MiB), the limit")));
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

/// The minimum length of a private key in base64, in characters. An Ed25519 key in PKCS #8 has 64 (RFC 8410 §7).
const MIN_KEY_LENGTH: usize = 60;

/// A path for an error message. A text with line breaks is not shown: it is probably the contents of a file, such as a
/// key. Neither is a path of no file that looks like PEM (RFC 7468) or the base64 of a DER sequence on one line.
pub(crate) fn shown_path(path: &Path) -> String {
    let shown = path.display().to_string();
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let is_der = shown.len() >= MIN_KEY_LENGTH && shown.starts_with('M') && shown.chars().all(is_base64);
    if shown.contains('\n') {
        "(not shown, has line breaks)".to_owned()
    } else if (is_der || shown.contains("-----")) && !path.exists() {
        "(not shown, may be a key)".to_owned()
    } else {
        shown
    }
}

/// The path of a secret, for an error message. If there is no such file, the text may be the secret itself.
pub(crate) fn secret_path(path: &Path) -> String {
    if path.exists() { path.display().to_string() } else { "the file (path not shown, may be the secret)".to_owned() }
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
            assert!(shown.starts_with("(not shown, "), "{shown}");
        }
        for path in ["/etc/tls/cert.pem", "Main", "/", &format!("/{}", "M".repeat(80))] {
            assert_eq!(shown_path(Path::new(path)), path);
        }
    }

    #[test]
    fn reading_a_pipe_that_does_not_end_fails_after_the_limit() {
        let (reader, _writer) = io::pipe().unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        let error = read_within(&path, Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("did not end within 1ms"), "{error}");
    }

    #[test]
    fn devices_directories_and_large_files_are_refused() {
        let large = std::env::temp_dir().join(format!("workspace-gateway-large-{}", std::process::id()));
        fs::File::create(&large).unwrap().set_len(MAX_FILE_SIZE).unwrap();
        assert_eq!(read(&large).unwrap().len() as u64, MAX_FILE_SIZE);
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
