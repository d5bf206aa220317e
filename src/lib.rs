//! A caching reverse proxy for the product-list APIs of Huawei Cloud Workspace.

pub mod admin;
pub mod cache;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod explain;
pub mod gateway;
pub mod reply;
pub mod request;
pub mod server;
pub mod simulator;
pub mod telemetry;
pub mod upstream;
