//! Commands and replies as bytes, in RESP2. Pure.

/// No command: an array of bulk strings.
pub(super) struct Malformed;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Okay,
    Nil,
    Int(i64),
    Bulk(Vec<u8>),
    Array(Vec<Reply>),
    Error(String),
}

impl Reply {
    pub(super) fn error(text: &str) -> Self {
        Self::Error(text.to_owned())
    }

    pub(super) fn bulk(bytes: &[u8]) -> Self {
        Self::Bulk(bytes.to_vec())
    }

    /// The bytes, or nil.
    pub(super) fn of(bytes: Option<&[u8]>) -> Self {
        bytes.map_or(Self::Nil, Self::bulk)
    }

    pub(super) fn count(number: usize) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }

    pub(super) fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Okay => to.extend(b"+OK\r\n"),
            Self::Nil => to.extend(b"$-1\r\n"),
            Self::Int(number) => to.extend(format!(":{number}\r\n").bytes()),
            Self::Error(text) => to.extend(format!("-{text}\r\n").bytes()),
            Self::Bulk(bytes) => {
                to.extend(format!("${}\r\n", bytes.len()).bytes());
                to.extend(bytes);
                to.extend(b"\r\n");
            }
            Self::Array(parts) => {
                to.extend(format!("*{}\r\n", parts.len()).bytes());
                parts.iter().for_each(|part| part.write(to));
            }
        }
    }
}

/// A command's parts, and its length in bytes.
pub(super) type Parsed<'b> = (Vec<&'b [u8]>, usize);

/// The first command. `None` if it is incomplete.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Parsed<'_>>, Malformed> {
    let Some((count, mut at)) = header(bytes, 0, b'*')? else { return Ok(None) };
    let mut parts = Vec::new();
    for _ in 0..count {
        let Some((length, begin)) = header(bytes, at, b'$')? else { return Ok(None) };
        let Some(part) = bytes.get(begin..begin + length) else { return Ok(None) };
        match bytes.get(begin + length..begin + length + 2) {
            Some(b"\r\n") => parts.push(part),
            Some(_) => return Err(Malformed),
            None => return Ok(None),
        }
        at = begin + length + 2;
    }
    if parts.is_empty() { Err(Malformed) } else { Ok(Some((parts, at))) }
}

/// The number in a line that begins with this byte, and where the next line begins. `None` if it is incomplete.
fn header(bytes: &[u8], at: usize, kind: u8) -> Result<Option<(usize, usize)>, Malformed> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some(end) = rest.windows(2).take(16).position(|pair| pair == b"\r\n") else {
        return if rest.len() < 16 && rest.first().is_none_or(|first| *first == kind) {
            Ok(None)
        } else {
            Err(Malformed)
        };
    };
    let number = rest.get(1..end).filter(|_| rest[0] == kind).and_then(|digits| std::str::from_utf8(digits).ok());
    let number = number.and_then(|digits| digits.parse().ok()).filter(|number| *number <= 1 << 30).ok_or(Malformed)?;
    Ok(Some((number, at + end + 2)))
}
