"""The Supabase store."""
