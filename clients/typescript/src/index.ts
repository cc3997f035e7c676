/**
 * Client of the PulsePlan token vault: `openapi-fetch` with the types of the vault's OpenAPI document.
 *
 *     const vault = createVaultClient({ baseUrl: "https://vault.internal", serviceKey });
 *     const token = unwrap(
 *       await vault.GET("/v1/users/{user_id}/tokens/{provider}", {
 *         params: { path: { user_id, provider: "google" } },
 *       }),
 *     );
 *
 * Nothing is repeated here: `VaultProblem` says whether the same call may succeed later, and when. A vault that gives no
 * answer is an error of `fetch`: a `TypeError`, or a `TimeoutError` after `timeoutSeconds`.
 */
import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type { components, paths } from "./schema.js";
export type Token = components["schemas"]["Token"];
export type RevealedToken = components["schemas"]["Revealed"];
export type StoreTokenRequest = components["schemas"]["StoreTokenRequest"];
export type TokenResponse = components["schemas"]["TokenResponse"];
export type Problem = components["schemas"]["Problem"];

/** The media type of a provider's own token answer, for `PUT` and `…/rotate`. */
export const TOKEN_RESPONSE = "application/vnd.oauth.token-response+json";

export interface VaultOptions {
  baseUrl: string;
  serviceKey: string;
  /** Purpose of the calls, for the vault's audit trail. */
  purpose?: string;
  /** The JWT of the user that the calls are on behalf of. */
  onBehalfOf?: string;
  /** 60 by default, because the vault waits for the provider in an exchange; a call with a `signal` may end sooner. */
  timeoutSeconds?: number;
  fetch?: (request: Request) => Promise<Response>;
}

export function createVaultClient(options: VaultOptions): Client<paths> {
  const headers: Record<string, string> = { Authorization: `Bearer ${options.serviceKey}` };
  if (options.purpose !== undefined) headers["X-Purpose"] = options.purpose;
  if (options.onBehalfOf !== undefined) headers["X-On-Behalf-Of"] = options.onBehalfOf;
  const send = options.fetch ?? fetch;
  const milliseconds = (options.timeoutSeconds ?? 60) * 1000;
  return createClient<paths>({
    baseUrl: options.baseUrl,
    headers,
    redirect: "error",
    fetch: (request) => {
      const signal = AbortSignal.any([request.signal, AbortSignal.timeout(milliseconds)]);
      return send(new Request(request, { signal }));
    },
  });
}

const GATEWAY_ERRORS: readonly number[] = [429, 502, 503, 504];

/** An error of the vault. Dispatch on `code`; it holds no token and no key. */
export class VaultProblem extends Error {
  readonly code: string;
  readonly status: number;
  readonly retryable: boolean;
  readonly retryAfterSeconds: number | undefined;
  readonly requestId: string | undefined;
  readonly fieldErrors: Readonly<Record<string, string>>;

  constructor(response: Response, problem: Partial<Problem> | undefined) {
    const code = problem?.code ?? "unexpected_answer";
    super(`${code}: ${problem?.detail ?? `status ${response.status}`}`);
    this.name = "VaultProblem";
    const seconds = Number(response.headers.get("Retry-After") ?? Number.NaN);
    this.code = code;
    this.status = response.status;
    this.retryable = problem?.retryable ?? GATEWAY_ERRORS.includes(response.status);
    this.retryAfterSeconds = Number.isNaN(seconds) ? undefined : seconds;
    this.requestId = problem?.request_id ?? response.headers.get("X-Request-ID") ?? undefined;
    this.fieldErrors = Object.fromEntries((problem?.errors ?? []).map((one) => [one.field, one.message]));
  }
}

/** Return the answer of a call, or throw its `VaultProblem`. */
export function unwrap<Data>(result: { data?: Data; error?: unknown; response: Response }): Data {
  if (!result.response.ok) {
    throw new VaultProblem(result.response, isProblem(result.error) ? result.error : undefined);
  }
  return result.data as Data;
}

function isProblem(error: unknown): error is Partial<Problem> {
  return typeof error === "object" && error !== null && "code" in error;
}
