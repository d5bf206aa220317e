//! The generated product catalogue. It is the same in every run.
//!
//! Fields, values and ids follow the documented tables and samples. Where they disagree (an object for a list, a number
//! in quotes), the tables are followed.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// A product: its fields and the parameters that select it.
pub(super) struct Product {
    /// The listed fields, except `descriptions`.
    pub(super) fields: Map<String, Value>,
    /// `descriptions` in English.
    pub(super) english: String,
    /// `descriptions` in Chinese.
    pub(super) chinese: String,
    /// The query parameters that select it. A name can occur more than once, for example one zone each.
    facets: Vec<(&'static str, String)>,
}

impl Product {
    fn new(fields: Value, english: String, chinese: String, facets: Vec<(&'static str, String)>) -> Self {
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        Self { fields, english, chinese, facets }
    }

    /// Whether a query parameter selects it.
    pub(super) fn matches(&self, name: &str, value: &str) -> bool {
        self.facets.iter().any(|(known, own)| *known == name && own == value)
    }
}

/// The products that an operation lists.
pub(super) fn of(operation: &str) -> &'static [Product] {
    static DESKTOPS: LazyLock<Vec<Product>> = LazyLock::new(desktops);
    static SHARERS: LazyLock<Vec<Product>> = LazyLock::new(sharers);
    static APPS: LazyLock<Vec<Product>> = LazyLock::new(apps);
    match operation {
        "ListProducts" => &DESKTOPS,
        "ListSharerProducts" => &SHARERS,
        "ListProduct" => &APPS,
        _ => &[],
    }
}

/// A series of machines, which exists in every size.
struct Series {
    /// The beginning of its product ids.
    id: &'static str,
    /// The end of its product ids.
    suffix: &'static str,
    flavor: &'static str,
    architecture: &'static str,
    os_type: &'static str,
    package_type: &'static str,
    gpu: Option<&'static str>,
}

const fn series(id: &'static str, suffix: &'static str, flavor: &'static str, package_type: &'static str) -> Series {
    Series { id, suffix, flavor, architecture: "x86", os_type: "Windows", package_type, gpu: None }
}

static DESKTOP_SERIES: [Series; 10] = [
    series("workspace.x", "", "s7", "general"),
    Series { os_type: "Linux", ..series("workspace.x", ".linux", "s7", "general") },
    series("workspace.c", "", "c7", "enterprise"),
    Series { os_type: "Linux", ..series("workspace.c", ".linux", "c7", "enterprise") },
    Series { os_type: "Linux", architecture: "arm", ..series("workspace.k", ".linux", "kc1", "enterprise") },
    series("workspace.a", "", "s6", "agile"),
    Series { os_type: "Linux", ..series("workspace.a", ".linux", "s6", "agile") },
    Series { os_type: "Linux", architecture: "arm", ..series("workspace.ka", ".linux", "kc1", "agile") },
    Series { gpu: Some("NVIDIA T4 | 16 GB"), ..series("workspace.g", "", "pi2", "general") },
    series("workspace.d", "", "c7", "dedicated"),
];

static APP_SERIES: [Series; 6] = [
    series("workspace.appstream.general", "", "s2", "general"),
    Series { os_type: "Linux", ..series("workspace.appstream.general", ".linux", "s2", "general") },
    Series {
        os_type: "Linux",
        architecture: "arm",
        ..series("workspace.appstream.kunpeng", ".linux", "kc1", "general")
    },
    series("workspace.appstream.compute", "", "c7", "general"),
    Series { gpu: Some("NVIDIA T4 | 16 GB"), ..series("workspace.appstream.gpu", "", "pi2", "general") },
    series("workspace.appstream.dedicated", "", "c7", "dedicated"),
];

/// Name, vCPUs.
static SIZES: [(&str, u32); 5] = [("large", 2), ("xlarge", 4), ("2xlarge", 8), ("4xlarge", 16), ("8xlarge", 32)];

/// Gigabytes of memory for each vCPU.
static RATIOS: [u32; 3] = [2, 4, 8];

/// The zones of products, in turn.
static ZONES: [&[&str]; 4] = [
    &["cn-north-4a", "cn-north-4b", "cn-north-4c"],
    &["cn-north-4a", "cn-north-4b"],
    &["cn-north-4c"],
    &["cn-north-4a", "cn-north-4c"],
];

/// A machine of a series, with what both services need to describe it.
struct Machine {
    product: Product,
    zones: &'static [&'static str],
    status: &'static str,
    vcpus: u32,
}

/// Every size of every series, for each charge mode.
fn machines(all: &'static [Series]) -> impl Iterator<Item = (&'static Series, Machine)> {
    let kinds = all.iter().flat_map(|series| {
        let sizes = SIZES.iter().flat_map(|size| RATIOS.iter().map(move |ratio| (size, *ratio)));
        sizes.flat_map(move |(size, ratio)| ["0", "1"].map(|charge_mode| (series, *size, ratio, charge_mode)))
    });
    kinds
        .enumerate()
        .map(|(index, (series, size, ratio, charge_mode))| (series, machine(index, series, size, ratio, charge_mode)))
}

fn machine(index: usize, series: &Series, (size, vcpus): (&str, u32), ratio: u32, charge_mode: &str) -> Machine {
    let Series { id, suffix, flavor, architecture, os_type, package_type, gpu } = series;
    // Ids must be unique, so only charge mode 0 has the plain id.
    let billing = if charge_mode == "0" { "" } else { ".hour" };
    let product_id = format!("{id}.{size}.{ratio}{suffix}{billing}");
    let flavor_id = format!("{flavor}.{size}.{ratio}");
    let gigabytes = vcpus * ratio;
    let zones = ZONES[index % ZONES.len()];
    let status = match index {
        _ if index % 13 == 12 => "abandon",
        _ if index % 7 == 6 => "sellout",
        _ => "normal",
    };
    let mut facets = vec![
        ("flavor_id", flavor_id.clone()),
        ("os_type", (*os_type).to_owned()),
        ("architecture", (*architecture).to_owned()),
        ("charge_mode", charge_mode.to_owned()),
        ("package_type", (*package_type).to_owned()),
    ];
    facets.extend(zones.iter().map(|zone| ("availability_zone", (*zone).to_owned())));
    let mut fields = json!({
        "product_id": product_id,
        "flavor_id": flavor_id,
        "type": "BASE",
        "architecture": architecture,
        "cpu": vcpus.to_string(),
        "memory": (gigabytes * 1024).to_string(),
        "is_gpu": gpu.is_some(),
        "charge_mode": charge_mode,
        "contain_data_disk": false,
        "cloud_service_type": "hws.service.type.vdi",
        "volume_product_type": "workspace",
        "status": status,
        "package_type": package_type,
    });
    if let Some(gpu) = gpu {
        fields["gpu_desc"] = json!(gpu);
    }
    let english = format!("CPU:{vcpus}vCPUs,Memory:{gigabytes}GB");
    let chinese = format!("CPU:{vcpus}核,内存:{gigabytes}GB");
    Machine { product: Product::new(fields, english, chinese, facets), zones, status, vcpus }
}

/// The products of Workspace: cloud desktops.
fn desktops() -> Vec<Product> {
    let products = machines(&DESKTOP_SERIES).map(|(series, Machine { mut product, vcpus, .. })| {
        insert(&mut product, "resource_type", "hws.resource.type.vdi.vm");
        insert(&mut product, "system_disk_type", "SAS");
        insert(&mut product, "system_disk_size", "80");
        if series.package_type == "dedicated" {
            insert(&mut product, "default_desktop_num", vcpus / 2);
            insert(&mut product, "max_apply_desktop_num", vcpus);
        }
        product
    });
    interchangeable(products.collect(), &["architecture", "os_type", "package_type", "charge_mode"])
}

/// The products of Workspace Application: servers that stream applications.
fn apps() -> Vec<Product> {
    let products = machines(&APP_SERIES).map(|(_, Machine { mut product, zones, status, vcpus })| {
        let in_zones: Vec<_> = zones.iter().map(|zone| format!("{zone}({status})")).collect();
        insert(&mut product, "resource_type", "hws.resource.type.workspace.appstream");
        insert(&mut product, "cond_operation_az", in_zones.join(","));
        insert(&mut product, "sessions", vcpus * 5 / 2);
        insert(&mut product, "domain_ids", Vec::<String>::new());
        // In v1 `product_id` selects the product itself.
        let own = id(&product);
        product.facets.push(("product_id", own));
        product
    });
    products.collect()
}

/// The products of Workspace for collaboration: rooms, charged by time, and user licenses, charged once.
fn sharers() -> Vec<Product> {
    let mut products = Vec::new();
    for size in [2, 4, 6, 8, 10, 15, 20, 30] {
        for (edition, is_gpu) in [("standard", false), ("gpu", true)] {
            for (charge_mode, billing) in [("0", ""), ("1", ".hour")] {
                let product_id = format!("workspace.collaborativedesktop.{size}party.{edition}{billing}");
                let english = format!("Collaboration resource | {size} participants | {edition} edition");
                let chinese = format!("协同资源 | {size}方 | {edition}");
                products.push(sharer(&product_id, "desktop_sharer", Some(size), is_gpu, charge_mode, english, chinese));
            }
        }
    }
    for users in [1, 5, 10, 50] {
        let product_id = format!("workspace.collaborativedesktop.collabpartsubusers.{users}");
        let english = format!("Subscription by collaboration participants | {users} user");
        let chinese = format!("协同参与方订阅 | {users}用户");
        products.push(sharer(&product_id, "user_sharer", None, false, "6", english, chinese));
    }
    interchangeable(products, &["package_type", "charge_mode"])
}

fn sharer(
    product_id: &str,
    package_type: &str,
    size: Option<u32>,
    is_gpu: bool,
    charge_mode: &str,
    english: String,
    chinese: String,
) -> Product {
    let mut facets = vec![
        ("charge_mode", charge_mode.to_owned()),
        ("package_type", package_type.to_owned()),
        ("is_gpu", u8::from(is_gpu).to_string()),
    ];
    facets.extend(size.map(|size| ("share_space_size", size.to_string())));
    let mut fields = json!({
        "product_id": product_id,
        "is_gpu": is_gpu,
        "charge_mode": charge_mode,
        "resource_type": "hws.resource.type.collaborativedesktop",
        "cloud_service_type": "hws.service.type.vdi",
        "package_type": package_type,
        "name": { "en-us": english, "zh-cn": chinese },
    });
    if let Some(size) = size {
        fields["share_space_size"] = json!(size);
    }
    Product::new(fields, english, chinese, facets)
}

/// In v2 a `product_id` selects the products that this product can be changed to: all others with the same values of
/// these parameters.
fn interchangeable(mut products: Vec<Product>, parameters: &[&str]) -> Vec<Product> {
    let kinds: Vec<(String, Vec<String>)> = products
        .iter()
        .map(|product| {
            let agree = product.facets.iter().filter(|(name, _)| parameters.contains(name));
            (id(product), agree.map(|(_, value)| value.clone()).collect())
        })
        .collect();
    for (product, (own, kind)) in products.iter_mut().zip(&kinds) {
        let others = kinds.iter().filter(|(other, other_kind)| other != own && other_kind == kind);
        product.facets.extend(others.map(|(other, _)| ("product_id", other.clone())));
    }
    products
}

fn id(product: &Product) -> String {
    product.fields.get("product_id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn insert(product: &mut Product, name: &str, value: impl Into<Value>) {
    product.fields.insert(name.to_owned(), value.into());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn every_operation_has_products_with_unique_ids() {
        for (operation, at_least) in Catalogue::for_tests(Vec::new()).operations().iter().zip([200, 30, 120]) {
            let operation = &operation.name;
            let ids: HashSet<_> = of(operation).iter().map(id).collect();
            assert!(ids.len() >= at_least, "{operation}: {}", ids.len());
            assert_eq!(ids.len(), of(operation).len(), "{operation}");
        }
    }

    #[test]
    fn the_documented_sample_is_in_the_catalogue() {
        let product = of("ListProducts").iter().find(|product| id(product) == "workspace.k.xlarge.2.linux").unwrap();
        for (name, value) in [("flavor_id", "kc1.xlarge.2"), ("cpu", "4"), ("memory", "8192"), ("architecture", "arm")]
        {
            assert_eq!(product.fields[name], value);
        }
        assert_eq!(product.english, "CPU:4vCPUs,Memory:8GB");
    }

    #[test]
    fn some_products_are_sold_out_or_abandoned() {
        for operation in ["ListProducts", "ListProduct"] {
            let states: HashSet<_> =
                of(operation).iter().filter_map(|product| product.fields["status"].as_str()).collect();
            assert_eq!(states, HashSet::from(["normal", "sellout", "abandon"]));
        }
    }
}
