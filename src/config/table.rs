//! The table of settings: whether each can change at run time, which flag it has, and what a change of it calls for. The
//! rows stand beside the fields in `settings.rs`, and a field without a row does not compile.

use std::sync::LazyLock;

use toml::{Table, Value};

use super::Settings;

/// A row of the table: what there is to know of a setting beside its type.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its place in the file, such as `["listen", "proxy"]`.
    pub path: &'static [&'static str],
    /// When a change of it is in force.
    pub applies: Applies,
    /// The flag that sets it, if there is one.
    pub flag: Option<Flag>,
    /// What is done when it has changed, beside putting it in force.
    pub follow_ups: &'static [FollowUp],
}

/// When a change of a setting is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// For the requests and connections from then on.
    AtRunTime,
    /// The value stays as it is for as long as the process runs.
    AtRestart,
}

/// A flag of the command line. An environment variable is named after it.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without the two dashes.
    pub name: &'static str,
    /// What stands for its value in the help.
    pub value: &'static str,
    /// What the help says of it.
    pub help: &'static str,
}

/// What a change of a setting calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowUp {
    /// The log goes by the new level.
    SetLogLevel,
    /// The log tells where upstream is.
    TellUpstream,
    /// The log warns of plain text beyond loopback.
    WarnOfPlaintext,
    /// The log warns of a certificate that ends soon.
    WarnOfCertificate,
}

/// The row of a setting that can change at run time; the path comes from its field.
pub(super) const RUN_TIME: Setting = Setting { path: &[], applies: Applies::AtRunTime, flag: None, follow_ups: &[] };

/// The row of a setting that needs a restart.
pub(super) const RESTART: Setting = Setting { applies: Applies::AtRestart, ..RUN_TIME };

impl Setting {
    pub(super) const fn with_flag(self, name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { flag: Some(Flag { name, value, help }), ..self }
    }

    pub(super) const fn calls_for(self, follow_ups: &'static [FollowUp]) -> Self {
        Self { follow_ups, ..self }
    }

    /// All settings, in the order of [`Settings`].
    pub fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Setting>> = LazyLock::new(Settings::rows);
        &ALL
    }

    /// The setting that a name is about. Names of entries and of what is in a file go beyond a setting's own:
    /// `operation.Zones.ttl`, `listen.cert_file (what is in it)`.
    pub fn of(name: &str) -> Option<&'static Self> {
        let is_about = |setting: &&Self| {
            let mut parts = name.split(['.', ' ']);
            setting.path.iter().all(|part| parts.next() == Some(part))
        };
        Self::all().iter().find(is_about)
    }

    /// Its name, such as `listen.proxy`.
    pub fn name(&self) -> String {
        self.path.join(".")
    }

    /// Its value in a table of settings, for a person: a string without its quotes.
    pub fn value_in(&self, table: &Table) -> Option<String> {
        let [first, rest @ ..] = self.path else { return None };
        let value = rest.iter().try_fold(table.get(*first)?, |value, name| value.get(name))?;
        Some(told(value))
    }

    /// Gives a value its place back if it can't change at run time.
    pub(super) fn keep<T: Clone>(&self, value: &mut T, in_force: &T) {
        if self.applies == Applies::AtRestart {
            value.clone_from(in_force);
        }
    }
}

/// A value as one would say it: a string without its quotes.
pub(super) fn told(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Defines tables of settings with their rows. A field with a row (after `=`) is a setting, one without is a table.
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
            /// The rows of its settings.
            pub(super) fn rows() -> Vec<Setting> {
                [$(settings!(@rows $section $field: $type $(= $row)?)),*].concat()
            }

            /// Keeps the values in force of settings that need a restart.
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
