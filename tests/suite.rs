//! The test suite: one binary, one file per feature, over real sockets on ports that the system chooses.
//!
//! Tests do not sleep or retry. They advance a clock, and they hold and release concurrent requests at the simulator's
//! barrier.
//!
//! With `WORKSPACE_GATEWAY_TEST_FAST_PATH=off`, gateways start with the fast path off, except in tests that set it and
//! for gateways in a process of their own.

#![allow(unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::float_cmp)]

mod support;

mod access_log;
mod admin;
mod admin_attacks;
mod admin_status;
mod attacks;
mod budget;
mod bypass;
mod cache_status;
mod caching;
mod catalogue_changes;
mod certificates;
mod check;
mod clients;
mod clocks;
mod coalescing;
mod commands;
mod denials;
mod deploy;
mod divergence;
mod docs;
mod edges;
mod errors;
mod event_log;
mod explained;
mod fairness;
mod fast_path;
mod fast_path_attacks;
mod faults;
mod fences;
mod fleet;
mod fleet_attacks;
mod fleet_check;
mod fleet_faults;
mod fleet_grants;
mod fleet_keys;
mod fleet_manifest;
mod fleet_sync;
mod flights;
mod freshness;
mod half_close;
mod headers;
mod heads;
mod health;
mod http2;
mod http2_edges;
mod invalidation;
mod isolation;
mod keep_warm;
mod key_abuse;
mod key_breaker;
mod keys;
mod listeners;
mod local_failures;
mod log_target;
mod long_outages;
mod metrics;
mod model;
mod node_sdk;
mod one_proof;
mod operations;
mod outages;
mod page;
mod pass_through;
mod proxies;
mod python_sdk;
mod queueing;
mod quota_flights;
mod quotas;
mod reasons;
mod reload;
mod reload_process;
mod renewal;
mod request_directives;
mod sdk;
mod second_calls;
mod second_tier;
mod secrets;
mod serving;
mod shapes;
mod sharing;
mod signals;
mod signatures;
mod snapshot;
mod staleness;
mod supervised;
mod table;
mod terraform;
mod tls;
mod tls_files;
mod tls_listener;
mod tracing;
mod trailers;
mod unshareable;
mod upgrade;
mod upstream;
mod varying_fields;
