"""Import paths that PulsePlan's scripts use, and the clients of Supabase."""
