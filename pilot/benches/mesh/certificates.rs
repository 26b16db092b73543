//! How many certificates are issued in a second.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result};
use prost_types::{Struct, Value, value::Kind};
use proto::ca::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use tonic::{Request, transport::Channel};

use crate::{folder::TEN_THOUSAND, process::Pilot, row::Row};

const CERTIFICATES: usize = 10_000;
/// Daemons that ask at the same time, one request at a time each.
const DAEMONS: usize = 16;

/// Ten thousand certificates of one node's pod, asked for over gRPC.
pub(crate) fn issued() -> Result<Vec<Row>> {
    let (pilot, _) = Pilot::start(TEN_THOUSAND)?;
    let token = format!("Bearer {}", pilot.said(&["node-token", "node-0"])?);
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
    let who =
        Value { kind: Some(Kind::StringValue("spiffe://cluster.local/ns/ns-0/sa/app-0".into())) };
    let body = IstioCertificateRequest {
        csr,
        validity_duration: 86_400,
        metadata: Some(Struct { fields: BTreeMap::from([("ImpersonatedIdentity".into(), who)]) }),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let cpu = pilot.cpu()?;
        let begun = Instant::now();
        let mut daemons = tokio::task::JoinSet::new();
        for _ in 0..DAEMONS {
            let address = format!("http://{}", pilot.addresses["plain"]);
            let (body, token) = (body.clone(), token.clone());
            daemons.spawn(async move {
                let channel = Channel::from_shared(address)?.connect().await?;
                let mut client = IstioCertificateServiceClient::new(channel);
                for _ in 0..CERTIFICATES / DAEMONS {
                    let mut request = Request::new(body.clone());
                    request.metadata_mut().insert("authorization", token.parse()?);
                    let answer = client.create_certificate(request).await?.into_inner();
                    answer.cert_chain.first().context("no certificate")?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = daemons.join_next().await {
            ended??;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let rate = f64::from(u32::try_from(CERTIFICATES)?) / seconds;
        let each = (pilot.cpu()? - cpu) / u32::try_from(CERTIFICATES)?;
        Ok(vec![
            Row::once("certificates issued", format!("{rate:.0} /s"), "1,000 /s"),
            Row::once("processor time of one", format!("{} µs", each.as_micros()), ""),
        ])
    })
}
