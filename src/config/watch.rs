//! Where settings are read from, again and again, and whether that has changed since.
//!
//! Files are known by their contents. Kubernetes swaps a symlink to a folder, editors rename, network file
//! systems tell nobody: what a path leads to, read as a whole, shows all of these alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, Override};

/// A file, if there is one, and the settings that beat it.
pub struct Source {
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    /// The file and those that its settings name, as they were just before they were read.
    seen: BTreeMap<PathBuf, Sight>,
}

/// What a file has in it. Nothing, if it can't be read.
type Sight = Option<blake3::Hash>;

fn look_at(path: &Path) -> Sight {
    std::fs::read(path).ok().map(|bytes| blake3::hash(&bytes))
}

impl Source {
    /// Nothing is read yet.
    pub fn new(file: Option<PathBuf>, overrides: Vec<Override>) -> Self {
        Self { file, overrides, seen: BTreeMap::new() }
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads everything, as it is now.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(&mut self) -> Result<Config, ConfigError> {
        // Looked at before they are read, so that what changes in between is seen to have changed.
        self.seen.extend(self.file.clone().map(|path| (path, None)));
        for (path, sight) in &mut self.seen {
            *sight = look_at(path);
        }
        let mut config = self.read().inspect_err(|error| {
            // It is worth another try when there is something in the file that is missing.
            if let ConfigError::AccessKey { file: Some(file), .. } = error {
                self.seen.entry(file.clone()).or_insert_with(|| look_at(file));
            }
        })?;
        let named = config.named_files();
        let new: Vec<_> = named.iter().filter(|path| !self.seen.contains_key(*path)).cloned().collect();
        self.seen.retain(|path, _| named.contains(path) || self.file.as_ref() == Some(path));
        if !new.is_empty() {
            self.seen.extend(new.into_iter().map(|path| (path.clone(), look_at(&path))));
            config = self.read()?;
        }
        Ok(config)
    }

    /// Whether a file has something else in it than when it was read last, for better or worse.
    pub fn has_changed(&self) -> bool {
        self.seen.iter().any(|(path, sight)| look_at(path) != *sight)
    }

    fn read(&self) -> Result<Config, ConfigError> {
        Config::load(self.file.clone(), &self.overrides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of a test's own.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("workspace-gateway-watch-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_file_has_changed_when_its_contents_have() {
        let folder = folder("contents");
        let path = folder.join("config.toml");
        let text = "region = \"r-1\"\n";
        std::fs::write(&path, text).unwrap();
        let mut source = Source::new(Some(path.clone()), Vec::new());
        source.load().unwrap();
        assert!(!source.has_changed());
        std::fs::write(&path, text).unwrap();
        assert!(!source.has_changed(), "written again, with the same in it");
        std::fs::write(&path, "region = \"r-2\"").unwrap();
        assert!(source.has_changed());
        assert_eq!(source.load().unwrap().settings.region.unwrap().to_string(), "r-2");
        assert!(!source.has_changed());
        std::fs::remove_file(&path).unwrap();
        assert!(source.has_changed());
        assert!(source.load().unwrap_err().to_string().contains("config.toml"));
        assert!(!source.has_changed(), "that it is gone is told once");
        let other = folder.join("other.toml");
        std::fs::write(&other, "region = \"r-2\"").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(source.has_changed());
        source.load().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_secret_that_is_not_there_yet_is_waited_for() {
        let folder = folder("secret");
        let (path, secret) = (folder.join("config.toml"), folder.join("secret"));
        let text = format!("region = \"r\"\n[[access_key]]\nid = \"AK\"\nsecret = {{ file = {secret:?} }}");
        std::fs::write(&path, text).unwrap();
        let mut source = Source::new(Some(path), Vec::new());
        assert!(source.load().unwrap_err().to_string().contains("access_key.AK.secret: cannot read"));
        assert!(!source.has_changed(), "told once");
        std::fs::write(&secret, "\n").unwrap();
        assert!(source.has_changed());
        assert!(source.load().unwrap_err().to_string().contains("is empty"));
        assert!(!source.has_changed(), "told once");
        std::fs::write(&secret, "first\n").unwrap();
        assert!(source.has_changed());
        let first = *source.load().unwrap().keys.keys().next().unwrap().fingerprint();
        std::fs::write(&secret, "second\n").unwrap();
        assert!(source.has_changed());
        assert_ne!(*source.load().unwrap().keys.keys().next().unwrap().fingerprint(), first);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_bad_file_is_read_again_when_it_changes_next() {
        let folder = folder("bad");
        let path = folder.join("config.toml");
        let mut source = Source::new(Some(path.clone()), Vec::new());
        for bad in ["region = \"r", "region = 1", "regoin = \"r-1\""] {
            std::fs::write(&path, bad).unwrap();
            assert!(source.load().is_err() && !source.has_changed(), "{bad}");
        }
        std::fs::write(&path, "region = \"r-1\"").unwrap();
        assert!(source.has_changed() && source.load().is_ok());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_that_settings_name_are_looked_at_too_as_long_as_they_are_named() {
        let folder = folder("named");
        let (path, named) = (folder.join("config.toml"), folder.join("ca.pem"));
        std::fs::write(&path, format!("region = \"r-1\"\n[upstream]\nca_file = {named:?}\n")).unwrap();
        let mut source = Source::new(Some(path.clone()), Vec::new());
        source.load().unwrap();
        assert!(!source.has_changed(), "it isn't there, and wasn't");
        std::fs::write(&named, "one").unwrap();
        assert!(source.has_changed());
        source.load().unwrap();
        std::fs::write(&named, "two").unwrap();
        assert!(source.has_changed());
        std::fs::write(&path, "region = \"r-1\"").unwrap();
        source.load().unwrap();
        std::fs::write(&named, "three").unwrap();
        assert!(!source.has_changed());
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
        let mut source = Source::new(Some(folder.join("config.toml")), Vec::new());
        source.load().unwrap();
        symlink("..2", folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        assert!(source.has_changed());
        assert_eq!(source.load().unwrap().settings.region.unwrap().to_string(), "r-2");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn without_a_file_nothing_changes() {
        let region = Override { path: &["region"], value: "r-1".to_owned(), origin: "--region".to_owned() };
        let mut source = Source::new(None, vec![region]);
        source.load().unwrap();
        assert!(!source.has_changed() && source.file().is_none());
    }
}
