// Token exchanges with openid-client. Run with the folder of node_modules as the current one:
//
//   node --input-type=module < openid_client.mjs   with REQUESTS, a JSON list, in the environment
//
// Each request is {"url", "service", "key", "parameters"}. Prints a list of {"token"} or {"error", "status", …}.
import * as client from 'openid-client';

const outcome = async ({ url, service, key, parameters }) => {
  const server = { issuer: new URL(url).origin, token_endpoint: url };
  const config = new client.Configuration(server, service, {}, client.ClientSecretBasic(key));
  client.allowInsecureRequests(config);
  try {
    const { grant_type: grant, ...others } = parameters;
    return { token: await client.genericGrantRequest(config, grant, others) };
  } catch (error) {
    const cause = error.cause ?? {};
    if (error.code === 'OAUTH_WWW_AUTHENTICATE_CHALLENGE') {
      return { status: error.status, schemes: cause.map(({ scheme }) => scheme) };
    }
    const response = cause instanceof Response ? cause : error.response;
    return { error: error.error, status: error.status ?? response?.status, code: error.cause?.code };
  }
};

console.log(JSON.stringify(await Promise.all(JSON.parse(process.env.REQUESTS).map(outcome))));
