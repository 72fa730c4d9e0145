//! `berth ports`.

use std::fmt;

use anyhow::Result;
use protocol::forward::PublishedBy;

use super::context::{CommandContext, block_on};
use crate::api::types::PortsReport;
use crate::output::columns;

impl fmt::Display for PortsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["HOST", "CONTAINER", "NAME", "CONNECTIONS"].map(str::to_owned)];
        rows.extend(self.ports.iter().map(|report| {
            let port = &report.port.published;
            let not_here = if report.port.listening {
                ""
            } else {
                " (not on this host)"
            };
            [
                format!("{}/{}{not_here}", port.host, port.transport),
                match port.by {
                    PublishedBy::Docker => port.target.to_string(),
                    PublishedBy::HostNetwork => "the same, host network".into(),
                },
                report.container.clone().unwrap_or_default(),
                format!("{} open, {} in all", report.port.open, report.port.total),
            ]
        }));
        f.write_str(&columns(&rows))
    }
}

/// Lists the ports of this host that lead to containers.
pub(super) fn run(context: &CommandContext) -> Result<()> {
    let report = block_on(async {
        let report = context.client().ports().await;
        report.map_err(|error| context.client_error(error))
    })?;
    if report.ports.is_empty() {
        context
            .output
            .remark("no ports are published; `docker run -p 8080:80` publishes one");
        return context.output.result(&report, &"");
    }
    context.output.result(&report, &report)
}
