//! Two more lists of Workspace that operators may want to cache: availability zones and disk types. Fields follow the
//! services' API reference.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::list::{ListContext, ListQuery};
use crate::catalogue::{Catalogue, Operation, Parameter, Service};

/// Name, path and query parameters, as documented.
const OPERATIONS: [(&str, &str, &[&str]); 2] = [
    ("ListAvailabilityZones", "/v2/{project_id}/availability-zones", &[]),
    ("ListVolumeProductInfo", "/v2/{project_id}/volume/products", &["availability_zone", "volume_type"]),
];

/// Letter, English name, Chinese name.
const ZONES: [(&str, &str, &str); 3] = [("a", "AZ1", "可用区1"), ("b", "AZ2", "可用区2"), ("c", "AZ3", "可用区3")];

/// Type, English name, Chinese name, and the letters of the zones that have it.
const VOLUMES: [(&str, &str, &str, &str); 3] = [
    ("SATA", "Common I/O", "普通IO", "ab"),
    ("SAS", "High I/O", "高IO", "abc"),
    ("SSD", "Ultra-high I/O", "超高IO", "ac"),
];

/// Adds these operations to a catalogue.
///
/// # Errors
/// Only if an operation is invalid or its path conflicts with another one.
pub(super) fn add_to(catalogue: &mut Catalogue) -> io::Result<()> {
    for (name, path, parameters) in OPERATIONS {
        let template = path.parse().map_err(|_| io::Error::other(path))?;
        let parameters = parameters.iter().map(|&name| Parameter::named(name.into())).collect();
        let operation = Operation { parameters, ..Operation::new(name, Service::Workspace, template, Vec::new()) };
        catalogue.add(operation).map_err(|clash| io::Error::other(format!("{name}: {clash:?}")))?;
    }
    Ok(())
}

/// The body of the response to one of these operations. `None` for any other operation.
pub(super) fn body(operation: &Arc<Operation>, query: &str, view: ListContext) -> Option<Bytes> {
    let query = ListQuery::of(operation, query);
    let body = match &*operation.name {
        "ListAvailabilityZones" => zones(view),
        "ListVolumeProductInfo" => volumes(&query, view),
        _ => return None,
    };
    Some(body.to_string().into())
}

/// Names change with the version of the catalogue.
fn versioned(name: &str, view: ListContext) -> String {
    if view.version == 0 { name.to_owned() } else { format!("{name} | r{}", view.version) }
}

fn zones(view: ListContext) -> Value {
    let zones = ZONES.iter().skip(usize::from(view.restricted)).map(|(letter, english, chinese)| {
        json!({
            "availability_zone": format!("cn-north-4{letter}"),
            "display_name": versioned(english, view),
            "i18n": { "en_us": versioned(english, view), "zh_cn": versioned(chinese, view) },
            "sold_out": { "products": [] },
            "product_ids": [],
            "visible": true,
            "default_availability_zone": *letter == "a",
        })
    });
    let zones: Vec<_> = zones.collect();
    json!({ "total_count": zones.len(), "availability_zones": zones })
}

fn volumes(query: &ListQuery<'_>, view: ListContext) -> Value {
    // Types are separated by commas.
    let has_requested_type =
        |kind: &str| query.value("volume_type").is_none_or(|kinds| kinds.split(',').any(|one| one == kind));
    let is_sold_in = |zones: &str| {
        let letter = |zone: &str| zone.strip_prefix("cn-north-4").is_some_and(|letter| zones.contains(letter));
        query.value("availability_zone").is_none_or(letter)
    };
    let volumes = VOLUMES.iter().filter(|(kind, _, _, zones)| has_requested_type(kind) && is_sold_in(zones));
    let volumes = volumes.skip(usize::from(view.restricted)).map(|(kind, english, chinese, _)| {
        json!({
            "resource_spec_code": format!("workspace.volume.{}", kind.to_ascii_lowercase()),
            "volume_type": kind,
            "volume_product_type": "workspace",
            "resource_type": "hws.resource.type.volume",
            "cloud_service_type": "hws.service.type.vdi",
            "domain_ids": [],
            "name": [
                { "language": "en-us", "value": versioned(english, view) },
                { "language": "zh-cn", "value": versioned(chinese, view) },
            ],
            "status": "normal",
        })
    });
    json!({ "volumes": volumes.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::list::Language;

    const VIEW: ListContext = ListContext { version: 0, restricted: false, language: Language::English };

    fn get(path: &str, query: &str, view: ListContext) -> Value {
        let mut catalogue = Catalogue::for_tests(Vec::new());
        add_to(&mut catalogue).unwrap();
        let (operation, _) = catalogue.operation(path).unwrap();
        serde_json::from_slice(&body(operation, query, view).unwrap()).unwrap()
    }

    #[test]
    fn both_lists_change_with_the_catalogue_and_the_view() {
        for (path, field) in [("/v2/p/availability-zones", "availability_zones"), ("/v2/p/volume/products", "volumes")]
        {
            let all = get(path, "", VIEW);
            assert_eq!(all[field].as_array().unwrap().len(), 3);
            assert_ne!(get(path, "", ListContext { version: 1, ..VIEW }), all);
            assert_eq!(get(path, "", ListContext { restricted: true, ..VIEW })[field].as_array().unwrap().len(), 2);
        }
    }

    #[test]
    fn disks_are_filtered_by_type_and_zone() {
        for (query, types) in [
            ("volume_type=SSD", &["SSD"][..]),
            ("volume_type=SATA%2CSSD", &["SATA", "SSD"]),
            ("availability_zone=cn-north-4b", &["SATA", "SAS"]),
            ("availability_zone=cn-north-4b&volume_type=SSD", &[]),
        ] {
            let found = get("/v2/p/volume/products", query, VIEW);
            let found: Vec<_> =
                found["volumes"].as_array().unwrap().iter().map(|volume| &volume["volume_type"]).collect();
            assert_eq!(found, types, "{query}");
        }
    }
}
