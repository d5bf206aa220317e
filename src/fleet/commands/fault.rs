//! Why the engine is of no use, as its errors say.

use redis::ServerError;
use strum::{IntoStaticStr, VariantArray};

/// Why the engine is not used, or a command had no effect. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub(crate) enum Fault {
    /// No connection, or it was closed.
    Connection,
    /// No reply in time.
    Silent,
    /// The password, a certificate or a right is missing.
    Denied,
    /// The gateway does not accept its certificate.
    Tls,
    /// It is a replica, or does not serve the hash slot.
    NotMaster,
    /// It loads its data.
    Loading,
    /// It has no memory left for new data.
    Full,
    /// A reply that is not an answer to the command.
    Reply,
    /// Another error.
    Error,
    /// It has lost data: an old backup was restored, or a replica that was behind has become the master.
    WentBack,
    /// The settings, or the files that they name, are unusable.
    Settings,
}

impl Fault {
    fn of_code(code: &str, text: &str) -> Self {
        // Scripts put the code of an inner error into their text.
        let has = |word: &str| code == word || text.contains(word);
        match code {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Self::Denied,
            _ if has("NOPERM") || text.contains("ACL failure") => Self::Denied,
            // Redis 7.0, about a command in a script.
            _ if text.contains("can't run this command") => Self::Denied,
            "MOVED" | "ASK" | "CLUSTERDOWN" | "MASTERDOWN" => Self::NotMaster,
            _ if has("READONLY") => Self::NotMaster,
            "LOADING" => Self::Loading,
            _ if has("OOM") => Self::Full,
            _ => Self::Error,
        }
    }

    pub(crate) fn of_server(error: &ServerError) -> Self {
        Self::of_code(error.code(), error.details().unwrap_or_default())
    }

    pub(crate) fn of(error: &redis::RedisError) -> Self {
        match error.kind() {
            // The crate takes each error before the first command for this.
            redis::ErrorKind::AuthenticationFailed if error.to_string().contains("max number of clients") => {
                Self::Error
            }
            redis::ErrorKind::AuthenticationFailed => Self::Denied,
            redis::ErrorKind::Parse | redis::ErrorKind::UnexpectedReturnType => Self::Reply,
            redis::ErrorKind::Io if error.is_timeout() => Self::Silent,
            redis::ErrorKind::Io => Self::Connection,
            _ => match error.code() {
                Some(code) => Self::of_code(code, error.detail().unwrap_or_default()),
                None => Self::Error,
            },
        }
    }

    /// For an operator.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Connection => "there is no connection to it",
            Self::Silent => "it does not answer in time",
            Self::Denied => "it refuses the user, the password, the certificate or a command",
            Self::Tls => "the gateway does not accept its certificate",
            Self::NotMaster => "the node is not the master of the keys",
            Self::Loading => "it is loading its data",
            Self::Full => "it has no memory for new data",
            Self::Reply => "it sends replies that are no answers",
            Self::Error => "it answers with an error",
            Self::WentBack => "it has lost data, or was full and a gateway has made all records void for a purge",
            Self::Settings => "the settings or files for it are unusable",
        }
    }

    /// Whether the connection is of no use any more.
    pub(crate) fn ends_link(self) -> bool {
        !matches!(self, Self::Full | Self::Error)
    }
}
