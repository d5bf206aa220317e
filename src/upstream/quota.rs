//! Upstream's limits on the number of calls: what responses say of them.

#[cfg_attr(not(test), expect(dead_code, reason = "the ledger of quotas, which is not there yet, reads these"))]
mod told;
