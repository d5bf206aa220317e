//! The source of the settings: reads them repeatedly and detects changes of their files.
//!
//! A change is detected by the contents of the files, not by events or times. Kubernetes replaces a symlink to a
//! folder, editors rename files, and network file systems send no events: the contents show all of these. A file that
//! is written in place may be valid TOML when half of it is written. So a changed file is used only when two looks show
//! the same contents.

use std::path::{Path, PathBuf};

use super::files::{FileDigests, Files};
use super::{Config, ConfigError, EnvironmentKey, Override};
use crate::proxy_config::ProxyConfig;

pub(crate) struct SettingsSource {
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    /// From environment variables. Like `proxy_config`, it is read once, at start.
    key: Option<EnvironmentKey>,
    proxy_config: ProxyConfig,
    /// The file and those that its settings name, as they were read.
    files: Files,
    /// The same files at the last look.
    last_seen: FileDigests,
    /// The configuration without its wrong settings, if the last `load` failed.
    repaired: Option<Box<Config>>,
}

impl SettingsSource {
    pub(crate) fn new(file: Option<PathBuf>, overrides: Vec<Override>, proxy_config: ProxyConfig) -> Self {
        let (key, files, last_seen, repaired) = (None, Files::default(), FileDigests::new(), None);
        Self { file, overrides, key, proxy_config, files, last_seen, repaired }
    }

    pub(crate) fn with_key(self, key: Option<EnvironmentKey>) -> Self {
        Self { key, ..self }
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub(crate) fn proxy_config(&self) -> &ProxyConfig {
        &self.proxy_config
    }

    /// The configuration without its wrong settings, if the last `load` failed. It is used only to check the files that
    /// it names, so that all errors are reported in one run.
    pub(crate) fn repaired(&self) -> Option<&Config> {
        self.repaired.as_deref()
    }

    /// Reads the file and the secrets again.
    ///
    /// # Errors
    /// All errors, except those in the certificate and key files that the settings name.
    pub(crate) fn load(&mut self) -> Result<Config, ConfigError> {
        self.files.begin();
        let config = self.read();
        self.files.end();
        config
    }

    /// Whether a file has changed since the last `load` and has not changed since the last call of this function.
    pub(crate) fn has_changed(&mut self) -> bool {
        let now = self.files.current();
        let is_settled = now == self.last_seen;
        self.last_seen = now;
        is_settled && self.last_seen != *self.files.digests()
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
        self.repaired = None;
        let config = Config::from_files(&name, &text, given, &mut self.files).map_err(|(error, repaired)| {
            self.repaired = repaired;
            error
        })?;
        // Hashed before others read them, so that a change in between is detected.
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

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("workspace-gateway-watch-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Looks twice, because a change must be seen twice.
    fn has_changed(source: &mut SettingsSource) -> bool {
        source.has_changed() | source.has_changed()
    }

    #[test]
    fn the_proxy_configuration_survives_a_reload() {
        let proxy = |name: &str| (name == "https_proxy").then(|| "http://proxy:3128".into());
        let region = Override { path: &["region"], value: "r-1".into(), origin: "--region".to_owned() };
        let mut source = SettingsSource::new(None, vec![region], ProxyConfig::read(proxy).unwrap());
        for _ in 0..2 {
            assert!(source.load().unwrap().proxy_config.has_proxy());
        }
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_read() {
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
    fn only_new_contents_are_a_change() {
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
        assert!(!has_changed(&mut source), "the missing file is reported once");
        let other = folder.join("other.toml");
        std::fs::write(&other, "region = \"r-2\"").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(has_changed(&mut source));
        source.load().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_secret_file_that_appears_later_is_a_change() {
        let folder = folder("secret");
        let (path, secret) = (folder.join("config.toml"), folder.join("secret"));
        let text = format!("region = \"r\"\n[[access_key]]\nid = \"AK\"\nsecret = {{ file = {secret:?} }}");
        std::fs::write(&path, text).unwrap();
        let mut source = SettingsSource::new(Some(path), Vec::new(), ProxyConfig::default());
        assert!(source.load().unwrap_err().to_string().contains("access_key.AK.secret: cannot read"));
        assert!(!has_changed(&mut source), "reported once");
        std::fs::write(&secret, "\n").unwrap();
        assert!(has_changed(&mut source));
        assert!(source.load().unwrap_err().to_string().contains("is empty"));
        assert!(!has_changed(&mut source), "reported once");
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
    fn a_file_is_watched_while_a_setting_names_it() {
        let folder = folder("named");
        let (path, named) = (folder.join("config.toml"), folder.join("ca.pem"));
        std::fs::write(&path, format!("region = \"r-1\"\n[upstream]\nca_file = {named:?}\n")).unwrap();
        let mut source = SettingsSource::new(Some(path.clone()), Vec::new(), ProxyConfig::default());
        source.load().unwrap();
        assert!(!has_changed(&mut source), "it does not exist, as before");
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
        // As in Kubernetes: the file is a link through another link, and the latter is replaced by a rename.
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

    /// Like `<(…)` of a shell: a text that can be read only once.
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
    fn a_pipe_is_read_once_and_its_text_is_kept() {
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
        assert!(has_changed(&mut source), "a file has replaced the pipe");
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
        // The secret is kept while the file is invalid.
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
    fn a_pipe_that_others_read_is_not_read_here() {
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
        let region = Override { path: &["region"], value: "r-1".into(), origin: "--region".to_owned() };
        let mut source = SettingsSource::new(None, vec![region], ProxyConfig::default());
        source.load().unwrap();
        assert!(!has_changed(&mut source) && source.file().is_none());
    }
}
