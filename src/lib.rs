//! A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.

pub mod catalogue;
pub mod request;
