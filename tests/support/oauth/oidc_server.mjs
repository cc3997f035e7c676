// A real OAuth server for the tests: oidc-provider with rotation and reuse detection, and an admin to seed and count.
//
//   node oidc_server.mjs NODE_MODULES PORT ADMIN_PORT CLIENTS
//
// CLIENTS is a JSON list of client metadata. The admin answers to
//   POST /seed     {"clientId"?, "expiresIn"?}: a new grant, as {"refresh_token"}
//   GET  /counts   {"refreshes", "reuses", "rejected", "revoked"} since the start or the last reset
//   POST /reset    {"accessTokenSeconds"?}: counts to zero, and the lifetime of access tokens from now on
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const [modules, port, adminPort, clients] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(`${modules}/oidc-provider/${path}`));
const { Provider } = await load('lib/index.js');
const { setStorage } = await load('lib/adapters/memory_adapter.js');

setStorage(new Map()); // its own forgets all but a thousand entries

let counts;
let accessTokenSeconds;
const reset = (seconds) => {
  counts = { refreshes: 0, reuses: 0, rejected: 0, revoked: 0 };
  accessTokenSeconds = seconds ?? 3600;
};
reset();

const issuer = `http://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  clients: JSON.parse(clients),
  scopes: ['openid', 'offline_access', 'calendar'],
  rotateRefreshToken: true,
  issueRefreshToken: async () => true,
  findAccount: async (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  cookies: { keys: ['only-for-tests'] },
  ttl: { AccessToken: () => accessTokenSeconds, RefreshToken: 86_400, Grant: 86_400, IdToken: 3600 },
  features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
});

provider.on('grant.success', (ctx) => {
  if (ctx.oidc.params.grant_type === 'refresh_token') counts.refreshes += 1;
});
provider.on('grant.error', (ctx, error) => {
  counts.rejected += 1;
  if (error.error_detail === 'refresh token already used') counts.reuses += 1;
});
provider.use(async (ctx, next) => {
  await next();
  if (ctx.oidc?.route === 'revocation' && ctx.status === 200) counts.revoked += 1; // also of a token that is unknown
});
provider.on('server_error', (_ctx, error) => console.error(error));

async function seed({ clientId, expiresIn }) {
  const client = await provider.Client.find(clientId ?? JSON.parse(clients)[0].client_id);
  const scope = 'openid offline_access calendar';
  const grant = new provider.Grant({ accountId: 'user', clientId: client.clientId });
  grant.addOIDCScope(scope);
  const grantId = await grant.save();
  const token = new provider.RefreshToken({
    accountId: 'user', client, grantId, gty: 'authorization_code', scope, rotations: 0, iiat: Math.floor(Date.now() / 1000), expiresIn,
  });
  return { refresh_token: await token.save() };
}

async function body(request) {
  let text = '';
  for await (const piece of request) text += piece;
  return text ? JSON.parse(text) : {};
}

createServer(async (request, response) => {
  const answer = (status, value) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
  try {
    if (request.url === '/counts') answer(200, counts);
    else if (request.url === '/seed') answer(200, await seed(await body(request)));
    else if (request.url === '/reset') { reset((await body(request)).accessTokenSeconds); answer(200, counts); }
    else answer(404, {});
  } catch (error) {
    answer(500, { error: String(error) });
  }
}).listen(Number(adminPort), '127.0.0.1');

provider.listen(Number(port), '127.0.0.1');
