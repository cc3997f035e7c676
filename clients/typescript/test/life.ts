/** Store, reveal, patch, rotate and delete a token: `node dist/test/life.js` with VAULT_URL and VAULT_KEY. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createVaultClient, TOKEN_RESPONSE, unwrap, VaultProblem, type TokenResponse } from "../src/index.js";

const baseUrl = process.env["VAULT_URL"] ?? "";
const serviceKey = process.env["VAULT_KEY"] ?? "";
const vault = createVaultClient({ baseUrl, serviceKey, purpose: "test.life" });
const TOKEN = "/v1/users/{user_id}/tokens/{provider}";
const path = { user_id: randomUUID(), provider: "google" };

const stored = unwrap(
  await vault.PUT(TOKEN, { params: { path }, body: { access_token: "one", expires_in: null, metadata: { courses: 4 } } }),
);
assert.equal(stored.status, "ok");
assert.equal(stored.expires_at, null);

const answer: TokenResponse & Record<string, unknown> = {
  access_token: "two",
  refresh_token: "1//r",
  expires_in: 3599,
  scope: "a b",
  token_type: "Bearer",
};
const taken = unwrap(
  await vault.PUT(TOKEN, { params: { path }, body: answer, headers: { "Content-Type": TOKEN_RESPONSE } }),
);
assert.deepEqual(taken.scopes, ["a", "b"]);

const revealed = unwrap(
  await vault.GET(TOKEN, { params: { path, query: { include: "refresh_token", min_ttl: 0 } } }),
);
assert.equal(revealed.access_token, "two");
assert.equal(revealed.refresh_token, "1//r");

const patched = unwrap(
  await vault.PATCH(TOKEN, { params: { path }, body: { status: "needs_reauth", status_reason: "why" } }),
);
assert.equal(patched.status_reason, "why");

const stale = await vault.POST(`${TOKEN}/rotate`, {
  params: { path, header: { "If-Match": `"${stored.version}"` } },
  body: { access_token: "three" },
});
assert.throws(() => unwrap(stale), { code: "version_conflict", status: 412, retryable: false });
const rotated = unwrap(
  await vault.POST(`${TOKEN}/rotate`, {
    params: { path, header: { "If-Match": `"${patched.version}"` } },
    body: { access_token: "three" },
  }),
);
assert.equal(rotated.version, patched.version + 1);

const listed = unwrap(await vault.GET("/v1/users/{user_id}/tokens", { params: { path } }));
assert.deepEqual(listed.tokens.map((one) => one.provider), ["google"]);

unwrap(await vault.DELETE(TOKEN, { params: { path } }));
const gone = await vault.GET(TOKEN, { params: { path } });
assert.throws(
  () => unwrap(gone),
  (error) => error instanceof VaultProblem && error.code === "token_not_found" && error.requestId !== undefined,
);

// a misspelt field, a wrong status and a missing body do not compile
// @ts-expect-error
await vault.PUT(TOKEN, { params: { path }, body: { accessToken: "x" } });
// @ts-expect-error
await vault.PATCH(TOKEN, { params: { path }, body: { status: "fine" } });
// @ts-expect-error
await vault.POST(`${TOKEN}/refresh`, { params: { path } });

const strangers = createVaultClient({ baseUrl, serviceKey: "ptv_unknown" });
const refused = await strangers.GET("/v1/users/{user_id}/tokens", { params: { path } });
assert.throws(() => unwrap(refused), { code: "unauthenticated", status: 401 });

// a vault that gives no answer, and a proxy's page
const silent = createServer(() => {}).listen(0, "127.0.0.1");
await new Promise((listening) => silent.once("listening", listening));
const hung = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
await assert.rejects(
  createVaultClient({ baseUrl: hung, serviceKey, timeoutSeconds: 0.05 }).GET(TOKEN, { params: { path } }),
  { name: "TimeoutError" },
);
await assert.rejects(
  createVaultClient({ baseUrl: hung, serviceKey }).GET(TOKEN, { params: { path }, signal: AbortSignal.timeout(50) }),
  { name: "TimeoutError" },
);
silent.closeAllConnections();
silent.close();
const page = async () => new Response("<html>", { status: 503, headers: { "Retry-After": "7" } });
const proxied = await createVaultClient({ baseUrl, serviceKey, fetch: page }).GET(TOKEN, { params: { path } });
assert.throws(() => unwrap(proxied), { code: "unexpected_answer", retryable: true, retryAfterSeconds: 7 });
console.log("ok");
