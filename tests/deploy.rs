//! The memory limits in `deploy/` are large enough for the settings there.

use bytesize::ByteSize;
use workspace_gateway::testing::budget::DEFAULT;
use workspace_gateway::testing::config::REFERENCE;
use workspace_gateway::testing::fast_path::MAX_HEADS;

/// The overlays: their settings, and the manifest with the memory limit. tests/kubernetes.py checks that the limit is still
/// the same in what is made of them, and in the Helm chart.
const OVERLAYS: [(&str, &str, &str); 3] = [
    ("sidecar", include_str!("../deploy/kustomize/overlays/sidecar/config.toml"), SIDECAR),
    ("standalone", include_str!("../deploy/kustomize/overlays/standalone/config.toml"), BASE),
    ("fleet", include_str!("../deploy/kustomize/overlays/fleet/config.toml"), BASE),
];
const SIDECAR: &str = include_str!("../deploy/kustomize/components/sidecar/gateway.yaml");
const BASE: &str = include_str!("../deploy/kustomize/base/deployment.yaml");
const UNIT: &str = include_str!("../deploy/workspace-gateway.service");
const README: &str = include_str!("../deploy/README.md");

const MIB: u64 = 1 << 20;

/// Added to `cache.max_size` and the budget, as deploy/README.md says.
const RESERVE: u64 = 64 * MIB;

/// The largest size of one grant and of one known head, and the size of the idle process, in bytes.
const GRANT: u64 = 256;
const HEAD: u64 = 1440;
const PROGRAM: u64 = 12 * MIB;

/// Freed memory that the allocator has not returned yet, as deploy/README.md says.
const UNRETURNED: u64 = 32 * MIB;

/// The memory budget if `limits.memory` is not set.
fn default_budget(limit: u64) -> u64 {
    (limit / 2).min(DEFAULT as u64)
}

/// The value of a setting, or its default.
fn setting(settings: &str, section: &str, name: &str) -> Option<toml::Value> {
    [settings, REFERENCE].into_iter().find_map(|text| {
        let table: toml::Table = toml::from_str(text).unwrap();
        table.get(section)?.get(name).cloned()
    })
}

fn bytes(settings: &str, section: &str, name: &str) -> Option<u64> {
    let value = setting(settings, section, name)?;
    value.as_str().and_then(|text| text.parse::<ByteSize>().ok()).map(|size| size.as_u64())
}

/// The memory limit of the gateway's container, in bytes.
fn limit(manifest: &str) -> u64 {
    let (_, container) = manifest.split_once("image: registry.example/workspace-gateway:").unwrap();
    let (_, limits) = container.split_once("limits:\n").unwrap();
    let mebibytes = limits.lines().next().unwrap().trim().strip_prefix("memory: ").unwrap().strip_suffix("Mi").unwrap();
    mebibytes.parse::<u64>().unwrap() * MIB
}

/// The memory limit of the unit, in bytes. systemd's M is 1024 × 1024 (systemd.resource-control(5)).
fn limit_of_unit() -> u64 {
    let max = UNIT.lines().find_map(|line| line.strip_prefix("MemoryMax=")).expect("the unit has a limit");
    max.strip_suffix('M').expect("in mebibytes").parse::<u64>().unwrap() * MIB
}

/// The memory that these settings need, in bytes. The default budget follows from the limit.
fn needed(settings: &str, limit: u64) -> u64 {
    let cache = bytes(settings, "cache", "max_size").unwrap();
    let budget = bytes(settings, "limits", "memory").unwrap_or_else(|| default_budget(limit));
    cache + budget + RESERVE + UNRETURNED
}

#[test]
fn memory_limits_cover_the_cache_the_budget_and_the_reserve() {
    let overlays = OVERLAYS.map(|(name, settings, manifest)| (name, settings, manifest, limit(manifest)));
    // The unit sets neither of the two sizes, so the defaults apply.
    let unit = ("workspace-gateway.service", "", UNIT, limit_of_unit());
    for (name, settings, text, limit) in overlays.into_iter().chain([unit]) {
        let needed = needed(settings, limit);
        assert!(needed <= limit, "{name}: the limit is {} MiB, and {} are needed", limit / MIB, needed / MIB);
        let cache = bytes(settings, "cache", "max_size").unwrap() / MIB;
        assert!(text.contains(&format!("cache.max_size ({cache}MiB)")), "{name} explains its limit");
    }
    // With the unit's limit the default budget is the same as without a limit.
    assert_eq!(default_budget(limit_of_unit()), DEFAULT as u64);
    assert!(
        README.contains(&format!("`MemoryMax={}M`", limit_of_unit() / MIB)),
        "deploy/README.md says the unit's limit"
    );
}

#[test]
fn the_reserve_covers_the_process_all_grants_and_known_heads() {
    for (name, settings, _) in OVERLAYS {
        let grants = setting(settings, "grants", "max_grants").unwrap().as_integer().unwrap();
        let needed = PROGRAM + u64::try_from(grants).unwrap() * GRANT + MAX_HEADS as u64 * HEAD;
        assert!(needed <= RESERVE, "{name}: {} MiB", needed / MIB);
    }
    for bytes in [RESERVE, UNRETURNED] {
        assert!(README.contains(&format!("{} MiB", bytes / MIB)), "deploy/README.md states {} MiB", bytes / MIB);
    }
}
