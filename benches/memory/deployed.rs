//! The settings and the memory limits of `deploy/`, read from the manifests.

pub(crate) struct Deployment {
    pub(crate) name: &'static str,
    /// The text of its `config.toml`.
    pub(crate) settings: String,
    /// In bytes.
    pub(crate) limit: usize,
}

impl Deployment {
    pub(crate) fn all() -> [Self; 2] {
        [
            Self::read(
                "sidecar",
                include_str!("../../deploy/kustomize/overlays/sidecar/config.toml"),
                include_str!("../../deploy/kustomize/components/sidecar/gateway.yaml"),
            ),
            Self::read(
                "standalone",
                include_str!("../../deploy/kustomize/overlays/standalone/config.toml"),
                include_str!("../../deploy/kustomize/base/deployment.yaml"),
            ),
        ]
    }

    fn read(name: &'static str, settings: &str, manifest: &str) -> Self {
        let (_, container) = manifest.split_once("image: registry.example/workspace-gateway:").expect("its container");
        let (_, limits) = container.split_once("limits:\n").expect("its limits");
        let memory = limits.lines().next().and_then(|line| line.trim().strip_prefix("memory: ")?.strip_suffix("Mi"));
        let mebibytes: usize = memory.and_then(|number| number.parse().ok()).expect("a memory limit in Mi");
        Self { name, settings: settings.to_owned(), limit: mebibytes << 20 }
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.settings.lines().any(|line| line.starts_with("cert_file"))
    }
}
