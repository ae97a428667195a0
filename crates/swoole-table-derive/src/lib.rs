//! `#[derive(Row)]`: makes a struct the row of a `swoole_table::Table`. That crate re-exports it; take it from there.

#![forbid(unsafe_code)]

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Data, DeriveInput, Error, Fields, Ident, parse_macro_input};

/// Implements `swoole_table::Row` for a struct with named fields, each of a type that is a `swoole_table::Value`, and adds
/// a constant for each field: `Online::UID`, a `Column<Online, u64>`, for the field `uid`, as visible as the field.
///
/// The columns lie in the row in the order of the fields. Generic structs, tuples and enums are refused.
#[proc_macro_derive(Row)]
pub fn derive_row(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

fn expand(input: &DeriveInput) -> Result<TokenStream, Error> {
    let row = &input.ident;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(row.span(), "a row is a struct: its fields are the columns"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new(
            row.span(),
            "the columns of a row have names: write a struct with named fields",
        ));
    };
    if fields.named.is_empty() {
        return Err(Error::new(row.span(), "a row has at least one column"));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new(
            input.generics.span(),
            "a row has one layout, so its struct has no parameters",
        ));
    }

    let mut columns = TokenStream::new();
    let mut schema = TokenStream::new();
    let (mut loads, mut stores) = (TokenStream::new(), TokenStream::new());
    // Words before the field that is being looked at: a sum of constants, for the compiler to work out.
    let mut at = quote!(0usize);
    for field in &fields.named {
        let Some(name) = &field.ident else { continue };
        let (ty, vis, text) = (&field.ty, &field.vis, plain(name));
        let constant = constant(name);
        let doc = format!("The column `{text}`.");
        columns.extend(quote_spanned! {name.span()=>
            #[doc = #doc]
            #[allow(dead_code, reason = "a program need not use every column by itself")]
            #vis const #constant: ::swoole_table::Column<#row, #ty> = ::swoole_table::Column::new(#at, #text);
        });
        let words = quote_spanned!(ty.span()=> <#ty as ::swoole_table::Value>::WORDS);
        schema.extend(quote!((#text, #words),));
        loads.extend(quote! {
            #name: <#ty as ::swoole_table::Value>::load(cells.part(#at, #words)),
        });
        stores.extend(quote! {
            <#ty as ::swoole_table::Value>::store(&self.#name, &mut |word, bits| put((#at) + word, bits));
        });
        at = quote!(#at + #words);
    }
    Ok(quote! {
        #[automatically_derived]
        impl #row {
            #columns
        }

        #[automatically_derived]
        impl ::swoole_table::Row for #row {
            const WORDS: usize = #at;
            const COLUMNS: &'static [(&'static str, usize)] = &[#schema];

            fn load(cells: ::swoole_table::Cells<'_>) -> Self {
                Self { #loads }
            }

            fn store(&self, put: &mut impl FnMut(usize, u64)) {
                #stores
            }
        }
    })
}

/// A field's name as people say it: without `r#`.
fn plain(name: &Ident) -> String {
    let text = name.to_string();
    text.strip_prefix("r#").map_or(text.clone(), str::to_owned)
}

/// `uid` is `UID`.
fn constant(name: &Ident) -> Ident {
    let upper = format_ident!("{}", plain(name).to_uppercase());
    Ident::new(&upper.to_string(), Span::call_site().located_at(name.span()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(source: &str) -> String {
        expand(&syn::parse_str(source).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_row_is_refused_with_a_reason() {
        assert!(refusal("enum E { A }").contains("a row is a struct"));
        assert!(refusal("struct T(u64);").contains("named fields"));
        assert!(refusal("struct U;").contains("named fields"));
        assert!(refusal("struct N {}").contains("at least one column"));
        assert!(refusal("struct G<T> { a: T }").contains("no parameters"));
    }

    #[test]
    fn columns_lie_one_after_the_other() {
        let expanded =
            expand(&syn::parse_str("struct R { pub uid: u64, r#type: Bytes<3> }").unwrap()).unwrap();
        let text = expanded.to_string();
        assert!(text.contains("pub const UID : :: swoole_table :: Column < R , u64 >"), "{text}");
        assert!(text.contains("const TYPE : :: swoole_table :: Column < R , Bytes < 3 > >"), "{text}");
        assert!(text.contains("\"type\""), "{text}");
    }
}
