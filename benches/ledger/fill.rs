//! Records like those of a gateway, the same ones on every run.

use keygate::clock::Timestamp;
use keygate::model::calendar::Calendar;
use keygate::model::digest::Digest;
use keygate::model::fault::Fault;
use keygate::model::id::{KeyId, PlanId, RequestId, WorkspaceId};
use keygate::model::key::{Ceilings, Key, KeyType, Plan};
use keygate::model::usage::{Outcome, UsageRecord};
use keygate::store::{Actor, IssuedCredential, NewKey, PlanRecord, SecretId, Store};
use std::sync::Arc;
use std::time::Duration;

/// Keys in workspaces, and how much each is used.
pub(crate) struct Traffic {
    keys: Vec<(KeyId, WorkspaceId)>,
}

const ENDPOINTS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/app/7f3a9c/conversations/1b2c3d4e/messages",
    "/v1/rag/kb-2211/search",
    "/v1/memory/users/90210/facts",
    "/v1/models",
];

// === impl Traffic ===

impl Traffic {
    /// `keys` keys, spread over `workspaces` workspaces.
    pub(crate) fn of(keys: usize, workspaces: usize) -> Self {
        let key = |n: usize| (KeyId::new(now()), format!("ws-{}", n % workspaces).parse().unwrap());
        Self { keys: (0..keys).map(key).collect() }
    }

    /// The most used key, and its workspace.
    pub(crate) fn busiest(&self) -> &(KeyId, WorkspaceId) {
        &self.keys[0]
    }

    /// Creates the keys in the store, so that their usage can be read.
    pub(crate) async fn make_keys(&self, store: &Arc<dyn Store>) {
        let by = Actor::cli();
        let plan_id: PlanId = "bench".parse().unwrap();
        let plan = Plan {
            id: plan_id.clone(),
            api_ops_rate_limit: 1_000,
            end_user_quota: 1,
            default_daily_request_limit: None,
            limits: Box::default(),
            calendar: Calendar::UTC,
        };
        let record = PlanRecord {
            plan,
            description: String::new(),
            usage_retention_days: None,
            deleted_keys_days: 30,
            created_at: now(),
            updated_at: now(),
        };
        store.create_plan(record, &by, now()).await.unwrap();
        for (n, (id, workspace)) in self.keys.iter().enumerate() {
            store.ensure_workspace(workspace, &plan_id, &by, now()).await.unwrap();
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_be_bytes());
            let key = NewKey {
                key: Key {
                    id: *id,
                    workspace_id: workspace.clone(),
                    kind: KeyType::Service,
                    scopes: "app".parse().unwrap(),
                    resource_id: workspace.as_str().into(),
                    ceilings: Ceilings {
                        rate_limit: 50,
                        rate_burst: None,
                        daily_request_limit: Some(100_000),
                        quota_limit: None,
                        concurrency_limit: None,
                        limits: Box::default(),
                    },
                    allowed_ips: Box::default(),
                    is_active: true,
                    expires_at: None,
                    end_user: None,
                },
                name: format!("key {n}"),
                description: String::new(),
                external_id: None,
                metadata: serde_json::Map::new(),
                credential: IssuedCredential {
                    digest: Digest(digest),
                    pepper_version: 1,
                    secret: SecretId(0),
                    hint: "sk".into(),
                },
                past: None,
                once: None,
            };
            store.create_key(key, &by, now()).await.unwrap();
        }
    }

    /// `rows` recent records in batches of `size`.
    pub(crate) fn batches(&self, rows: usize, size: usize) -> Vec<Vec<UsageRecord>> {
        let begin = now().minus(Duration::from_secs(60));
        let records: Vec<UsageRecord> = (0..rows)
            .map(|n| self.record(n as u64, begin.plus(Duration::from_micros(n as u64 * 20))))
            .collect();
        records.chunks(size).map(<[_]>::to_vec).collect()
    }

    /// The `n`th record, which arrived at `at`.
    pub(crate) fn record(&self, n: u64, at: Timestamp) -> UsageRecord {
        // A hash instead of a random number, so that every run has the same rows.
        let mut dice = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        dice ^= dice >> 29;
        dice = dice.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        // Roughly Zipf: the rank is the inverse of a uniform number.
        let uniform = (dice >> 40) as f64 / (1_u64 << 24) as f64;
        let rank = (self.keys.len() as f64).powf(uniform) as usize;
        let (key, workspace) = &self.keys[(rank - 1).min(self.keys.len() - 1)];
        let is_denied = dice % 50 == 0;
        let status_code = if is_denied {
            429
        } else if dice % 1_000 == 1 {
            502
        } else {
            200
        };
        UsageRecord {
            id: RequestId::new(at),
            request_id: format!("01a20f53-ba6a-7e46-915b-{:012x}", dice >> 16).into(),
            api_key_id: *key,
            workspace_id: workspace.clone(),
            at,
            method: "POST".into(),
            endpoint: ENDPOINTS[(dice >> 8) as usize % ENDPOINTS.len()].into(),
            route: "app".into(),
            status_code,
            outcome: if is_denied { Outcome::Denied } else { Outcome::Served },
            denial: is_denied.then_some(Fault::RateLimitExceeded),
            charged: !is_denied,
            degraded: false,
            response_time_us: 20_000 + (dice >> 20) % 900_000,
            ttfb_us: Some(10_000 + (dice >> 20) % 400_000),
            bytes_in: 300 + dice % 4_000,
            bytes_out: 900 + dice % 20_000,
            tokens_used: dice % 3_000,
            ip_address: Some([10, 0, (dice >> 3) as u8, dice as u8].into()),
            user_agent: "OpenAI/Python 1.52.0".into(),
            end_user_id: None,
            upstream: "10.1.2.3:9001".into(),
            node: "node-1".into(),
            model: None,
            model_requested: None,
            input_tokens: None,
            cached_tokens: None,
            cache_write_tokens: None,
            output_tokens: None,
            reasoning_tokens: None,
            audio_tokens: None,
            cost_nano: None,
            usage_source: None,
            provider_request_id: None,
        }
    }
}

/// The real time.
#[expect(clippy::disallowed_methods, reason = "partitions are made for the days that it really is")]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_micros(since.as_micros().try_into().unwrap())
}
