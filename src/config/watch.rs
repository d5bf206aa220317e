//! Where settings are read from, again and again, and whether that has changed since.
//!
//! Files are known by their contents. Kubernetes swaps a symlink to a folder, editors rename, network file
//! systems tell nobody: what a path leads to, read as a whole, shows all of these alike. A file that is written
//! in place may be seen when it is half there, and good TOML all the same; so it has to look the same twice.

use std::path::{Path, PathBuf};

use super::files::{Files, Sights};
use super::{Config, ConfigError, GivenKey, Override};
use crate::proxy_config::ProxyConfig;

/// A file, if there is one, and the settings that beat it.
pub(crate) struct SettingsSource {
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    /// The access key of the environment. Like `egress`, it is read once, at start.
    key: Option<GivenKey>,
    proxy_config: ProxyConfig,
    /// The file and those that its settings name, as they were read.
    files: Files,
    /// The same files, as they were when they were looked at last.
    glimpsed: Sights,
    /// What the settings amount to without their mistakes, if they had any when they were read last.
    mended: Option<Box<Config>>,
}

impl SettingsSource {
    /// Nothing is read yet.
    pub(crate) fn new(file: Option<PathBuf>, overrides: Vec<Override>, proxy_config: ProxyConfig) -> Self {
        let (key, files, glimpsed, mended) = (None, Files::default(), Sights::new(), None);
        Self { file, overrides, key, proxy_config, files, glimpsed, mended }
    }

    /// The same with an access key beside those of the file.
    pub(crate) fn with_key(self, key: Option<GivenKey>) -> Self {
        Self { key, ..self }
    }

    /// The file, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The way to upstream.
    pub(crate) fn proxy_config(&self) -> &ProxyConfig {
        &self.proxy_config
    }

    /// What the settings amount to without the mistakes that they had when they were read last. It is only for looking at the
    /// files that they name: whoever corrects the mistakes is told in the same run what is wrong with those.
    pub(crate) fn mended(&self) -> Option<&Config> {
        self.mended.as_deref()
    }

    /// Reads everything, as it is now.
    ///
    /// # Errors
    /// All that is wrong, but for what is in the certificates and keys that the settings name.
    pub(crate) fn load(&mut self) -> Result<Config, ConfigError> {
        self.files.begin();
        let config = self.read();
        self.files.end();
        config
    }

    /// Whether a file has something else in it than when it was read last, for better or worse, and had the same
    /// when this was asked before.
    pub(crate) fn has_changed(&mut self) -> bool {
        let now = self.files.look();
        let is_settled = now == self.glimpsed;
        self.glimpsed = now;
        is_settled && self.glimpsed != *self.files.sights()
    }

    fn read(&mut self) -> Result<Config, ConfigError> {
        let (name, text) = match &self.file {
            Some(path) => {
                let text = self.files.read(path);
                let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
                (path.display().to_string(), text.map_err(unreadable)?)
            }
            None => ("configuration".to_owned(), String::new()),
        };
        let given = (&*self.overrides, self.key.as_ref());
        self.mended = None;
        let config = Config::from_files(&name, &text, given, &mut self.files).map_err(|(error, mended)| {
            self.mended = mended;
            error
        })?;
        // Before it is read, so that what changes in between is seen to have changed.
        let listen = &config.settings.listen;
        let named = [&config.settings.upstream.ca_file, &listen.cert_file, &listen.key_file, &listen.client_ca_file];
        named.into_iter().flatten().for_each(|path| self.files.note(path));
        Ok(Config { proxy_config: self.proxy_config.clone(), ..config })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A folder of a test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("workspace-gateway-watch-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Looks at it twice.
    fn has_changed(source: &mut SettingsSource) -> bool {
        source.has_changed() | source.has_changed()
    }

    #[test]
    fn whatever_is_read_again_the_way_to_upstream_stays() {
        let proxy = |name: &str| (name == "https_proxy").then(|| "http://proxy:3128".into());
        let region = Override { path: &["region"], value: "r-1".to_owned(), origin: "--region".to_owned() };
        let mut source = SettingsSource::new(None, vec![region], ProxyConfig::read(proxy).unwrap());
        for _ in 0..2 {
            assert!(source.load().unwrap().proxy_config.has_proxy());
        }
    }

    #[test]
    fn what_is_being_written_is_not_read_yet() {
        let folder = folder("written");
        let path = folder.join("config.toml");
        std::fs::write(&path, "region = \"r-1\"\n").unwrap();
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        source.load().unwrap();
        for text in ["", "region = \"r-1\"\n", "region = \"r-1\"\n[cache]\n", "region = \"r-1\"\n[cache]\nttl = \"1h\""]
        {
            std::fs::write(&path, text).unwrap();
            assert!(!source.has_changed(), "{text}");
        }
        assert!(source.has_changed());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_has_changed_when_its_contents_have() {
        let folder = folder("contents");
        let path = folder.join("config.toml");
        let text = "region = \"r-1\"\n";
        std::fs::write(&path, text).unwrap();
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        source.load().unwrap();
        assert!(!has_changed(&mut source));
        std::fs::write(&path, text).unwrap();
        assert!(!has_changed(&mut source), "written again, with the same in it");
        std::fs::write(&path, "region = \"r-2\"").unwrap();
        assert!(has_changed(&mut source));
        assert_eq!(source.load().unwrap().settings.region.unwrap().to_string(), "r-2");
        assert!(!has_changed(&mut source));
        std::fs::remove_file(&path).unwrap();
        assert!(has_changed(&mut source));
        assert!(source.load().unwrap_err().to_string().contains("config.toml"));
        assert!(!has_changed(&mut source), "that it is gone is told once");
        let other = folder.join("other.toml");
        std::fs::write(&other, "region = \"r-2\"").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(has_changed(&mut source));
        source.load().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_secret_that_is_not_there_yet_is_waited_for() {
        let folder = folder("secret");
        let (path, secret) = (folder.join("config.toml"), folder.join("secret"));
        let text = format!("region = \"r\"\n[[access_key]]\nid = \"AK\"\nsecret = {{ file = {secret:?} }}");
        std::fs::write(&path, text).unwrap();
        let mut source = SettingsSource::new(Some(path), Vec::new(), ProxyConfig::default());
        assert!(source.load().unwrap_err().to_string().contains("access_key.AK.secret: cannot read"));
        assert!(!has_changed(&mut source), "told once");
        std::fs::write(&secret, "\n").unwrap();
        assert!(has_changed(&mut source));
        assert!(source.load().unwrap_err().to_string().contains("is empty"));
        assert!(!has_changed(&mut source), "told once");
        std::fs::write(&secret, "first\n").unwrap();
        assert!(has_changed(&mut source));
        let first = *source.load().unwrap().keys.keys().next().unwrap().fingerprint();
        std::fs::write(&secret, "second\n").unwrap();
        assert!(has_changed(&mut source));
        assert_ne!(*source.load().unwrap().keys.keys().next().unwrap().fingerprint(), first);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_bad_file_is_read_again_when_it_changes_next() {
        let folder = folder("bad");
        let path = folder.join("config.toml");
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        for bad in ["region = \"r", "region = 1", "regoin = \"r-1\""] {
            std::fs::write(&path, bad).unwrap();
            assert!(source.load().is_err() && !has_changed(&mut source), "{bad}");
        }
        std::fs::write(&path, "region = \"r-1\"").unwrap();
        assert!(has_changed(&mut source) && source.load().is_ok());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_that_settings_name_are_looked_at_too_as_long_as_they_are_named() {
        let folder = folder("named");
        let (path, named) = (folder.join("config.toml"), folder.join("ca.pem"));
        std::fs::write(&path, format!("region = \"r-1\"\n[upstream]\nca_file = {named:?}\n")).unwrap();
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        source.load().unwrap();
        assert!(!has_changed(&mut source), "it isn't there, and wasn't");
        std::fs::write(&named, "one").unwrap();
        assert!(has_changed(&mut source));
        source.load().unwrap();
        std::fs::write(&named, "two").unwrap();
        assert!(has_changed(&mut source));
        std::fs::write(&path, "region = \"r-1\"").unwrap();
        source.load().unwrap();
        std::fs::write(&named, "three").unwrap();
        assert!(!has_changed(&mut source));
        let files = ["cert_file", "key_file", "client_ca_file"];
        let text = files.map(|name| format!("{name} = {:?}\n", folder.join(name))).concat();
        std::fs::write(&path, format!("region = \"r-1\"\n[listen]\n{text}")).unwrap();
        source.load().unwrap();
        for name in files {
            std::fs::write(folder.join(name), "one").unwrap();
            assert!(has_changed(&mut source), "{name}");
            source.load().unwrap();
            assert!(!has_changed(&mut source));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_swapped_symlink_is_a_change() {
        use std::os::unix::fs::symlink;
        let folder = folder("symlink");
        // As Kubernetes does it: the file is a link through a link, and the latter is renamed into place.
        for (version, region) in [("..1", "r-1"), ("..2", "r-2")] {
            std::fs::create_dir(folder.join(version)).unwrap();
            std::fs::write(folder.join(version).join("config.toml"), format!("region = \"{region}\"")).unwrap();
        }
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/config.toml", folder.join("config.toml")).unwrap();
        let mut source = SettingsSource::new(Some(folder.join("config.toml")), Vec::new(), ProxyConfig::default());
        source.load().unwrap();
        symlink("..2", folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        assert!(has_changed(&mut source));
        assert_eq!(source.load().unwrap().settings.region.unwrap().to_string(), "r-2");
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// What a shell makes of `<(…)`: text that can be read once.
    #[cfg(unix)]
    fn pipe(text: &str) -> (std::io::PipeReader, PathBuf) {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        (reader, path)
    }

    #[cfg(unix)]
    #[test]
    fn what_can_be_read_once_is_read_once_and_stays() {
        let folder = folder("pipe");
        let path = folder.join("config.toml");
        let (_reader, pipe) = pipe("region = \"r-1\"");
        std::os::unix::fs::symlink(pipe, &path).unwrap();
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        for _ in 0..2 {
            assert_eq!(source.load().unwrap().settings.region.unwrap().to_string(), "r-1");
            assert!(!has_changed(&mut source));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "region = \"r-2\"").unwrap();
        assert!(has_changed(&mut source), "a file has come in its place");
        assert_eq!(source.load().unwrap().settings.region.unwrap().to_string(), "r-2");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_may_come_from_a_pipe() {
        let folder = folder("piped-secret");
        let path = folder.join("config.toml");
        let (_reader, pipe) = pipe("hush\n");
        let key = |id: &str| format!("[[access_key]]\nid = \"{id}\"\nsecret = {{ file = {pipe:?} }}\n");
        let text = format!("region = \"r-1\"\n{}{}", key("A"), key("B"));
        std::fs::write(&path, &text).unwrap();
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        let fingerprints = |config: &Config| config.keys.keys().map(|key| *key.fingerprint()).collect::<BTreeSet<_>>();
        let first = fingerprints(&source.load().unwrap());
        assert!(first.len() == 2 && !has_changed(&mut source));
        // A file that is wrong for a while doesn't have the secret forgotten.
        for wrong in ["[", "", "region = \"r-1\"\n[[access_key]]"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(has_changed(&mut source) && source.load().is_err(), "{wrong}");
        }
        std::fs::write(&path, text).unwrap();
        assert!(has_changed(&mut source));
        assert_eq!(fingerprints(&source.load().unwrap()), first);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_others_read_once_is_left_to_them() {
        let folder = folder("left");
        let path = folder.join("config.toml");
        let (_reader, pipe) = pipe("authorities");
        std::fs::write(&path, format!("region = \"r-1\"\n[upstream]\nca_file = {pipe:?}\n")).unwrap();
        let mut source = SettingsSource::new(Some(path), Vec::new(), ProxyConfig::default());
        source.load().unwrap();
        assert!(!has_changed(&mut source));
        assert_eq!(std::fs::read_to_string(pipe).unwrap(), "authorities");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn without_a_file_nothing_changes() {
        let region = Override { path: &["region"], value: "r-1".to_owned(), origin: "--region".to_owned() };
        let mut source = SettingsSource::new(None, vec![region], ProxyConfig::default());
        source.load().unwrap();
        assert!(!has_changed(&mut source) && source.file().is_none());
    }
}
