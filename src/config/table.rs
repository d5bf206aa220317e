//! The table of settings: whether each can change at run time, its flag, and what to do after a change. Each row is
//! beside its field in `settings.rs`, so that no field can be without one.

use std::sync::LazyLock;

use toml::{Table, Value};

use super::Settings;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The path in the file, such as `["listen", "proxy"]`.
    pub path: &'static [&'static str],
    pub applies: Applies,
    pub flag: Option<Flag>,
    /// What to do after a change, besides putting the new value in force.
    pub follow_ups: &'static [FollowUp],
}

/// When a change of a setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// For all later requests and connections.
    AtRunTime,
    /// The value stays the same while the process runs.
    AtRestart,
}

/// A flag of the command line. The name of the environment variable is derived from it.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without the two dashes.
    pub name: &'static str,
    /// The placeholder of the value in the help.
    pub value: &'static str,
    pub help: &'static str,
}

/// What to do after a change of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowUp {
    SetLogLevel,
    /// Log the upstream URLs.
    LogUpstream,
    /// Log a warning if plaintext is used beyond loopback.
    WarnAboutPlaintext,
    /// Log a warning if the certificate expires soon.
    WarnAboutCertificate,
}

/// The row of a setting that can change at run time. The macro adds the path.
pub(super) const RUN_TIME: Setting = Setting { path: &[], applies: Applies::AtRunTime, flag: None, follow_ups: &[] };

/// The row of a setting that needs a restart.
pub(super) const RESTART: Setting = Setting { applies: Applies::AtRestart, ..RUN_TIME };

impl Setting {
    pub(super) const fn with_flag(self, name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { flag: Some(Flag { name, value, help }), ..self }
    }

    pub(super) const fn with_follow_ups(self, follow_ups: &'static [FollowUp]) -> Self {
        Self { follow_ups, ..self }
    }

    /// All settings, in the order of [`Settings`].
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Setting>> = LazyLock::new(Settings::rows);
        &ALL
    }

    /// The setting that a name belongs to. A name may have more parts, as in `operation.Zones.ttl` and
    /// `listen.cert_file (file content)`.
    pub fn of(name: &str) -> Option<&'static Self> {
        let is_about = |setting: &&Self| {
            let mut parts = name.split(['.', ' ']);
            setting.path.iter().all(|part| parts.next() == Some(part))
        };
        Self::all().iter().find(is_about)
    }

    /// Such as `listen.proxy`.
    pub fn name(&self) -> String {
        self.path.join(".")
    }

    /// The setting's value in a table, for the help: a string without quotes.
    pub fn value_in(&self, table: &Table) -> Option<String> {
        let [first, rest @ ..] = self.path else { return None };
        let value = rest.iter().try_fold(table.get(*first)?, |value, name| value.get(name))?;
        Some(display_value(value))
    }

    /// Puts the value in force back if the setting needs a restart.
    pub(super) fn keep<T: Clone>(&self, value: &mut T, in_force: &T) {
        if self.applies == Applies::AtRestart {
            value.clone_from(in_force);
        }
    }
}

/// A value for help and logs: a string without quotes.
pub(super) fn display_value(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Defines tables of settings. A field with a row (after `=`) is a setting. A field without one is a table.
macro_rules! settings {
    ($($(#[$about:meta])* pub struct $name:ident $section:tt {
        $($(#[$attribute:meta])* pub $field:ident: $type:ty $(= $row:expr)?,)*
    })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, expecting = "a table of settings")]
        pub struct $name {
            $($(#[$attribute])* pub $field: $type,)*
        }

        impl $name {
            pub(super) fn rows() -> Vec<Setting> {
                [$(settings!(@rows $section $field: $type $(= $row)?)),*].concat()
            }

            /// Puts the values in force back for settings that need a restart.
            pub(super) fn keep(&mut self, in_force: &Self) {
                $(settings!(@keep self.$field, in_force.$field $(, $row)?);)*
            }
        }
    )*};
    (@rows [$($section:literal)?] $field:ident: $type:ty = $row:expr) => {
        vec![Setting { path: &[$($section,)? stringify!($field)], ..$row }]
    };
    (@rows $section:tt $field:ident: $type:ty) => {
        <$type>::rows()
    };
    (@keep $value:expr, $in_force:expr) => {
        $value.keep(&$in_force)
    };
    (@keep $value:expr, $in_force:expr, $row:expr) => {
        $row.keep(&mut $value, &$in_force)
    };
}
pub(super) use settings;
