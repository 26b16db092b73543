//! Asks an API server whose token it is.
//!
//! In: a token. Out: the pod and service account that it is of, if its audience is ours. Tokens go to the API server
//! and stand in no message.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    PATIENCE, Pod, ReviewError,
    verdicts::{Digest, Verdicts},
};

/// Whom tokens must be meant for, as with Istio.
const AUDIENCE: &str = "istio-ca";
/// Reviews under way at once; more wait.
const AT_ONCE: usize = 32;

/// Reviews tokens.
pub(crate) struct TokenReviewer {
    client: Client,
    verdicts: Mutex<Verdicts>,
    room: Semaphore,
}

impl fmt::Debug for TokenReviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviewer").finish_non_exhaustive()
    }
}

impl TokenReviewer {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, verdicts: Mutex::default(), room: Semaphore::new(AT_ONCE) }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// [`ReviewError`] if it is nobody's, or nobody can say at present.
    pub(crate) async fn review(&self, token: &str) -> Result<Pod, ReviewError> {
        let digest = digest(token);
        if let Some(known) = self.lock().of(&digest, Instant::now()) {
            return known;
        }
        let verdict = match timeout(PATIENCE, self.ask(token)).await {
            Ok(verdict) => verdict,
            Err(_) => {
                let reason = format!("no answer from the API server within {PATIENCE:?}");
                Err(ReviewError::Away { reason })
            }
        };
        self.lock().take(digest, &verdict, Instant::now());
        verdict
    }

    async fn ask(&self, token: &str) -> Result<Pod, ReviewError> {
        // Never closed.
        let _room = self.room.acquire().await.ok();
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            status: None,
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        match reviews.create(&PostParams::default(), &review).await {
            Ok(answer) => whose(answer.status.unwrap_or_default()),
            Err(kube::Error::Api(status)) => Err(ReviewError::Away {
                reason: format!("the API server answers {}: {}", status.code, status.message),
            }),
            // Of what goes wrong below, messages may hold the request.
            Err(_) => {
                Err(ReviewError::Away { reason: "the API server does not answer".to_owned() })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(token: &str) -> Digest {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3: it says so");
    let hash = suite.common.hash_provider.hash(token.as_bytes());
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Reads the API server's answer.
fn whose(status: TokenReviewStatus) -> Result<Pod, ReviewError> {
    let refused = |reason: &str| ReviewError::Refused { reason: reason.to_owned() };
    if status.authenticated != Some(true) {
        return Err(refused(status.error.as_deref().unwrap_or("it says no more")));
    }
    // A server that knows no audiences says yes to all of them.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(refused("it is not meant for istio-ca"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let is_account = user.groups.iter().flatten().any(|group| group == "system:serviceaccounts");
    let account = name.strip_prefix("system:serviceaccount:").filter(|_| is_account);
    let Some((namespace, service_account)) = account.and_then(|account| account.split_once(':'))
    else {
        return Err(ReviewError::NoServiceAccount { user: name });
    };
    let extra: BTreeMap<String, Vec<String>> = user.extra.unwrap_or_default();
    let bound = |what: &str| {
        let values = extra.get(&format!("authentication.kubernetes.io/{what}"))?;
        Some(values.first()?.as_str().into())
    };
    Ok(Pod {
        namespace: namespace.into(),
        service_account: service_account.into(),
        name: bound("pod-name"),
        node: bound("node-name"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(status: Value, expected: Result<Pod, &str>) {
        let found = whose(serde_json::from_value(status).unwrap());
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn a_review_is_believed_if_it_is_of_a_service_account_and_for_us() {
        let user = json!({
            "username": "system:serviceaccount:shop:web",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/node-name": ["node-a"],
            },
        });
        let pod = Pod {
            namespace: "shop".into(),
            service_account: "web".into(),
            name: Some("web-1".into()),
            node: Some("node-a".into()),
        };
        let good = json!({"authenticated": true, "audiences": ["istio-ca"], "user": user});
        check(good, Ok(pod));
        let no = "the API server does not accept the token: ";
        let for_nobody = json!({"authenticated": true, "user": user});
        check(for_nobody, Err(&format!("{no}it is not meant for istio-ca")));
        let others = json!({"authenticated": true, "audiences": ["api"], "user": user});
        check(others, Err(&format!("{no}it is not meant for istio-ca")));
        let expired = json!({"authenticated": false, "error": "token has expired"});
        check(expired, Err(&format!("{no}token has expired")));
        check(json!({}), Err(&format!("{no}it says no more")));
        let named = json!({"username": "system:serviceaccount:shop:web"});
        let human = json!({"authenticated": true, "audiences": ["istio-ca"], "user": named});
        let refusal = "the token is system:serviceaccount:shop:web's, who is no service account";
        check(human, Err(refusal));
    }

    #[test]
    fn digests_tell_tokens_apart() {
        assert_eq!(digest("a"), digest("a"));
        assert_ne!(digest("a"), digest("b"));
    }
}
